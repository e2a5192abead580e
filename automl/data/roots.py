"""Where data sets lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from automl.types import InputError

#: Environment variable that names the data root.
DATA_VARIABLE = "PRUNEPILOT_DATA"

_CHECKOUT = Path(__file__).resolve().parents[2]


def candidate_roots(root: str | os.PathLike[str] | None = None) -> list[Path]:
    """Folders that may be the data root, the most wanted first; those that exist.

    Args:
        root: The ``data.root`` setting, or None.

    Returns:
        ``root``, then the folder that ``PRUNEPILOT_DATA`` names, then ``../shared/data`` beside
        the project (or the current folder), without repeats.
    """
    variable = os.environ.get(DATA_VARIABLE)
    places = [
        *([Path(root)] if root is not None else []),
        *([Path(variable)] if variable else []),
        _CHECKOUT.parent / "shared" / "data",
        Path.cwd().parent / "shared" / "data",
    ]
    folders = (place.expanduser().resolve() for place in places)
    return list(dict.fromkeys(folder for folder in folders if folder.is_dir()))


def data_root(root: str | os.PathLike[str] | None, wanted: str) -> Path:
    """The data root: ``root`` where it is given, else the first of :func:`candidate_roots`.

    Args:
        root: The ``data.root`` setting, or None.
        wanted: What must lie there, for the error's message.

    Raises:
        InputError: ``root`` is no folder, or none is given and none is found.
    """
    if root is not None:
        folder = Path(root).expanduser()
        if not folder.is_dir():
            raise InputError(
                f"data.root {folder} is not a folder: set it to the folder that holds {wanted}"
            )
        return folder.resolve()
    variable = os.environ.get(DATA_VARIABLE)
    if variable and not Path(variable).expanduser().is_dir():
        raise InputError(
            f"{DATA_VARIABLE} names {variable}, which is not a folder: set it, or data.root, to "
            f"the folder that holds {wanted}"
        )
    found = candidate_roots()
    if not found:
        raise InputError(
            f"no data found: set data.root=FOLDER or {DATA_VARIABLE} to the folder that holds "
            f"{wanted}"
        )
    return found[0]
