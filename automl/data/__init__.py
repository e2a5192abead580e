"""Data sets as tensors: training, validation and test, disjoint, decoded once.

A data set is one file in ``automl/data/sources`` and one yaml in ``conf/data``.
"""

from automl.data.augment import PadCropFlip
from automl.data.load import load_data, split_for
from automl.data.tensors import Augment, DataSplits, TensorSet

__all__ = ["Augment", "DataSplits", "PadCropFlip", "TensorSet", "load_data", "split_for"]
