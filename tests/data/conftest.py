"""Small data sets in every form, made of random images, and a cache that is thrown away."""

import pickle

import numpy as np
import pytest
from made import TEST, TRAIN, batches, write_parquet, write_pictures


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No test reads or fills the user's cache, or sees the machine's data root."""
    folder = tmp_path / "user-cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.delenv("PRUNEPILOT_DATA", raising=False)
    return folder


@pytest.fixture(scope="session")
def raw():
    """Images and labels by part: uint8 (n, 3, 32, 32) and int64 (n,), balanced over 10 classes."""
    random = np.random.default_rng(0)
    made = {}
    for part, count in (("train", TRAIN), ("test", TEST)):
        images = random.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        made[part] = (images, np.arange(count, dtype=np.int64) % 10)
    return made


@pytest.fixture
def parquet_root(tmp_path, raw):
    folder = tmp_path / "hf" / "cifar10"
    images, labels = raw["train"]
    for shard in range(2):
        rows = slice(shard * 30, shard * 30 + 30)
        write_parquet(folder / f"train-{shard:05d}-of-00002.parquet", images[rows], labels[rows])
    write_parquet(folder / "test-00000-of-00001.parquet", *raw["test"])
    return folder.parent


@pytest.fixture
def pickle_root(tmp_path, raw):
    folder = tmp_path / "tv" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, images, labels in batches(raw):
        content = {b"data": images.reshape(len(images), -1), b"labels": labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder.parent


@pytest.fixture
def binary_root(tmp_path, raw):
    folder = tmp_path / "bin" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name, images, labels in batches(raw):
        records = np.concatenate(
            (labels.astype(np.uint8)[:, None], images.reshape(len(images), -1)), axis=1
        )
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    return folder.parent


@pytest.fixture
def picture_root(tmp_path):
    """train/ with three classes of 20 pictures of several shapes, nothing else."""
    root = tmp_path / "pictures"
    write_pictures(root / "train", {"cat": 20, "ant": 20, "bee": 20})
    return root
