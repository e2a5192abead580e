"""Writes small data sets of random images, in every form."""

import io

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

TRAIN, TEST = 60, 20


def png(image):
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()


def write_parquet(path, images, labels, column="img"):
    pictures = [
        {"bytes": image if isinstance(image, bytes) or image is None else png(image), "path": None}
        for image in images
    ]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = pyarrow.table({column: pyarrow.array(pictures, kind), "label": list(labels)})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path)


def batches(raw):
    images, labels = raw["train"]
    for index in range(5):
        rows = slice(index * 12, index * 12 + 12)
        yield f"data_batch_{index + 1}", images[rows], labels[rows]
    yield "test_batch", *raw["test"]


def write_pictures(folder, counts, seed=0):
    random = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            height, width = ((24, 24), (24, 40), (50, 30))[index % 3]
            pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:03d}.png")
