"""The model zoo, one file per family, and the loader for any other network.

Every zoo network is one file here and one yaml in ``conf/model``; networks from elsewhere are
named as ``torchvision:NAME``, ``timm:NAME`` or a dotted path (see :func:`load_model`).
"""

from automl.models.checkpoint import resolve_checkpoint
from automl.models.load import LoadedModel, load_model

__all__ = ["LoadedModel", "load_model", "resolve_checkpoint"]
