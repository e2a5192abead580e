"""PNG, JPEG and other picture files to arrays."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from automl.types import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

#: Endings of picture files, lower case.
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff"})
#: To be raised when pictures are decoded to other values, for what keeps them decoded.
VERSION = 2


def decode(content: bytes | Path, name: str, size: int | None = None) -> NDArray[np.uint8]:
    """Decodes one picture to RGB.

    Args:
        content: The file's bytes, or its path.
        name: What to call it in an error.
        size: Scales the shorter side to this and crops the centre; None keeps the picture.

    Returns:
        (3, height, width), uint8, possibly a view of another layout.

    Raises:
        InputError: The content is not a whole picture, or one of far too many pixels.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as picture:
            rgb = _in_rgb(picture)
            pixels = np.asarray(rgb if size is None else _fit(rgb, size))
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large ({error}): scale it down or remove it") from error
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        # SyntaxError is what PIL raises on some damaged PNG headers.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{name} is not a whole picture ({reason}): fetch it again or remove it"
        ) from error
    return pixels.transpose(2, 0, 1)


def _in_rgb(picture: Image) -> Image:
    """Grey of 16 bits is scaled to 8: PIL would make everything above 255 white."""
    from PIL.Image import fromarray

    if picture.mode == "RGB":
        return picture
    if not picture.mode.startswith("I"):
        return picture.convert("RGB")
    grey = np.asarray(picture).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError("grey of more than 16 bits")
    return fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")


def _fit(picture: Image, size: int) -> Image:
    from PIL.Image import Resampling

    width, height = picture.size
    scale = size / min(width, height)
    if scale != 1.0:
        width, height = max(size, round(width * scale)), max(size, round(height * scale))
        picture = picture.resize((width, height), Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return picture.crop((left, top, left + size, top + size))
