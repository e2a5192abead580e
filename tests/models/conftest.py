import pytest
import torch
from pyarrow import parquet

from automl.data import TensorSet
from automl.data.formats.pictures import decode

IMAGES = 500


@pytest.fixture(scope="session")
def cifar10_test(data_root):
    """The first 500 of CIFAR-10's test images; all 60,000 would take seconds to decode."""
    table = parquet.read_table(data_root / "cifar10" / "test-00000-of-00001.parquet")[:IMAGES]
    pictures = [decode(row["bytes"], "picture") for row in table["img"].to_pylist()]
    images = torch.stack([torch.from_numpy(picture.copy()) for picture in pictures])
    return TensorSet(images, torch.tensor(table["label"].to_pylist()))
