"""CIFAR-10 in its three forms, each of which is missing, incomplete or damaged in its own way."""

import pickle
import time

import numpy as np
import pytest
import torch
from made import TEST, TRAIN, png, write_parquet

from automl.data import load_data
from automl.types import InputError

FORMS = ("parquet_root", "pickle_root", "binary_root")


@pytest.fixture(params=FORMS)
def root(request):
    return request.getfixturevalue(request.param)


def test_every_form_gives_the_same_images(root, raw):
    data = load_data("cifar10", root=root, split="test_halves")
    assert torch.equal(data.train.images, torch.from_numpy(raw["train"][0]))
    assert torch.equal(data.train.labels, torch.from_numpy(raw["train"][1]))
    halves = [data.validation, data.test]
    assert torch.equal(
        torch.cat([part.images for part in halves]), torch.from_numpy(raw["test"][0])
    )
    assert data.classes[0] == "airplane"
    assert data.classes[9] == "truck"
    assert data.mean == (0.485, 0.456, 0.406)


def test_forms_with_the_same_content_have_the_same_fingerprint(request):
    prints = {
        load_data("cifar10", root=request.getfixturevalue(form), validation_size=10).fingerprint
        for form in FORMS
    }
    assert len(prints) == 1


def test_the_folder_itself_may_be_the_root(root):
    folder = next(entry for entry in root.iterdir() if entry.is_dir())
    assert len(load_data("cifar10", root=folder, validation_size=10).test) == TEST


def test_holdout_takes_balanced_validation_images_out_of_training(parquet_root):
    data = load_data("cifar10", root=parquet_root, validation_size=20, seed=5)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [40, 20, TEST]
    assert torch.bincount(data.validation.labels).tolist() == [2] * 10
    assert torch.bincount(data.train.labels).tolist() == [4] * 10


def test_test_halves_are_the_first_and_second_half_by_index(parquet_root, raw):
    data = load_data("cifar10", root=parquet_root, split="test_halves", seed=9)
    assert data.split == "test_halves"
    assert len(data.train) == TRAIN
    images = torch.from_numpy(raw["test"][0])
    assert torch.equal(data.validation.images, images[: TEST // 2])
    assert torch.equal(data.test.images, images[TEST // 2 :])


def test_the_search_half_can_be_smaller_but_not_larger(parquet_root):
    options = {"root": parquet_root, "split": "test_halves"}
    assert len(load_data("cifar10", validation_size=4, **options).validation) == 4
    with pytest.raises(InputError, match=r"at most 10 \(half of cifar10's test images\), got 11"):
        load_data("cifar10", validation_size=11, **options)


def test_training_needs_images_of_its_own(parquet_root):
    with pytest.raises(InputError, match="below the 60 training images of cifar10, got 60"):
        load_data("cifar10", root=parquet_root, validation_size=60)


def test_another_size_is_refused(parquet_root):
    with pytest.raises(InputError, match=r"data\.size must be 32 or null"):
        load_data("cifar10", root=parquet_root, size=64)
    assert load_data("cifar10", root=parquet_root, size=32, validation_size=10)


def test_an_empty_root_says_what_was_looked_for(tmp_path):
    with pytest.raises(InputError, match=r"looked for cifar10/train-.*cifar-10-batches-bin"):
        load_data("cifar10", root=tmp_path)


# Incomplete


def test_missing_files_are_named(root):
    folder = next(entry for entry in root.iterdir() if entry.is_dir())
    gone = sorted([*folder.glob("train*"), *folder.glob("data_batch_*")])[-1]
    gone.unlink()
    with pytest.raises(InputError, match=f"lacks {gone.name}"):
        load_data("cifar10", root=root)


def test_a_missing_test_part_is_said(root):
    folder = next(entry for entry in root.iterdir() if entry.is_dir())
    for file in folder.glob("test*"):
        file.unlink()
    with pytest.raises(InputError, match="has CIFAR-10's train files but not its test files"):
        load_data("cifar10", root=root)


# Damaged Parquet


def shard(root):
    return root / "cifar10" / "train-00001-of-00002.parquet"


def assert_refused(root, message):
    with pytest.raises(InputError, match=message) as caught:
        load_data("cifar10", root=root, validation_size=10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 100, -100])
def test_a_truncated_shard_is_named(parquet_root, keep):
    whole = shard(parquet_root).read_bytes()
    shard(parquet_root).write_bytes(whole[:keep])
    assert_refused(parquet_root, "train-00001-of-00002.parquet is not a whole Parquet file")


def test_a_shard_with_a_damaged_middle_is_refused(parquet_root):
    whole = bytearray(shard(parquet_root).read_bytes())
    whole[1000:3000] = bytes(2000)
    shard(parquet_root).write_bytes(whole)
    assert_refused(parquet_root, "train-00001-of-00002.parquet")


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (b"no picture", "row 1 of .*is not a whole picture"),
        (b"", "row 1 of .*is not a whole picture"),
        (None, "row 1 of .*has no picture"),
        (png(np.zeros((3, 16, 32), np.uint8)), "row 1 of .*must be 32 x 32 pixels, got 32 x 16"),
        (png(np.zeros((3, 32, 32), np.uint8))[:60], "row 1 of .*is not a whole picture"),
    ],
)
def test_a_damaged_picture_is_named_by_its_row(parquet_root, raw, picture, message):
    images = list(raw["train"][0][:3])
    images[1] = picture
    write_parquet(shard(parquet_root), images, [0, 1, 2])
    assert_refused(parquet_root, message)


@pytest.mark.parametrize("labels", [[0, 10], [0, -1], [0, None], [0.5, 1.0], ["a", "b"]])
def test_labels_must_be_classes(parquet_root, raw, labels):
    write_parquet(shard(parquet_root), raw["train"][0][:2], labels)
    assert_refused(parquet_root, "label")


def test_other_columns_are_refused_and_image_is_understood(parquet_root, raw):
    images, labels = raw["train"][0][30:60], raw["train"][1][30:60]
    write_parquet(shard(parquet_root), images, labels, column="picture")
    assert_refused(parquet_root, "must have the columns img")
    write_parquet(shard(parquet_root), images, labels, column="image")
    assert len(load_data("cifar10", root=parquet_root, validation_size=10).train) == 50


# Damaged batches


def test_binary_files_must_be_whole_records(binary_root):
    file = binary_root / "cifar-10-batches-bin" / "data_batch_2.bin"
    whole = file.read_bytes()
    for content in (whole[:-1], b""):
        file.write_bytes(content)
        assert_refused(binary_root, "data_batch_2.bin must be records of 3073 bytes")


def test_binary_labels_must_be_classes(binary_root):
    file = binary_root / "cifar-10-batches-bin" / "data_batch_2.bin"
    file.write_bytes(b"\x0a" + file.read_bytes()[1:])
    assert_refused(binary_root, "must hold labels 0 to 9, got 10")


def batch(root):
    return root / "cifar-10-batches-py" / "data_batch_2"


PIXELS = np.zeros((2, 3072), np.uint8)


def test_batches_of_python_2_load(pickle_root):
    # What the published files hold: byte strings as keys and pixels, under NumPy's old names.
    raw = PIXELS.tobytes()
    written = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\n"
        b"ndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\n"
        b"q\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tb\x89T"
        + len(raw).to_bytes(4, "little")
        + raw
        + b"tbU\x06labels]q\x08(K\x01K\x09eu."
    )
    batch(pickle_root).write_bytes(written)
    data = load_data("cifar10", root=pickle_root, split="test_halves")
    assert data.train.labels[12:14].tolist() == [1, 9]
    assert not data.train.images[12:14].any()


class Bomb:
    """Runs when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickles_that_name_anything_else_are_refused_and_not_run(pickle_root, tmp_path, protocol):
    content = {"data": PIXELS, "labels": [0, 1], "x": Bomb(tmp_path / "ran")}
    batch(pickle_root).write_bytes(pickle.dumps(content, protocol))
    assert_refused(pickle_root, r"it names (_?io|numpy[\w.]*)\.\w+, which could run code")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["os\nsystem", "builtins\neval", "numpy.core.multiarray\nscalar", "numpy\nload"]
)
def test_dangerous_names_are_refused(pickle_root, name):
    batch(pickle_root).write_bytes(f"c{name}\n(S'x'\ntR.".encode())
    assert_refused(pickle_root, "which could run code")


@pytest.mark.parametrize(
    "array",
    [PIXELS.astype(np.float32), PIXELS.astype(object), np.asfortranarray(PIXELS)],
    ids=["float", "object", "fortran"],
)
def test_arrays_other_than_plain_bytes_are_refused(pickle_root, array):
    batch(pickle_root).write_bytes(pickle.dumps({"data": array, "labels": [0, 1]}, 2))
    assert_refused(pickle_root, "no CIFAR-10 batch: it holds an array")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "must hold a dictionary, got list"),
        ({"labels": [0]}, "must hold 'data'"),
        (
            {"data": PIXELS[:, :100], "labels": [0, 1]},
            r"'data', a uint8 array of shape \(n, 3072\)",
        ),
        ({"data": PIXELS}, "must hold 'labels', a list of 2"),
        ({"data": PIXELS, "labels": [0]}, "must hold 'labels', a list of 2"),
        ({"data": PIXELS, "labels": ["a", 1]}, "must hold 'labels', a list of 2"),
        ({"data": PIXELS, "labels": [0, 11]}, "must hold labels 0 to 9, got 11"),
    ],
)
def test_batches_with_other_content_are_refused(pickle_root, content, message):
    batch(pickle_root).write_bytes(pickle.dumps(content, 2))
    assert_refused(pickle_root, message)


@pytest.mark.parametrize("keep", [0, 1, 50, 300, -1])
def test_truncated_batches_are_refused(pickle_root, keep):
    whole = batch(pickle_root).read_bytes()
    batch(pickle_root).write_bytes(whole[:keep])
    assert_refused(pickle_root, "data_batch_2 is damaged")


# The real images


@pytest.fixture(scope="module")
def real(data_root, tmp_path_factory):
    """A function that loads the real data set, from a cache of its own."""

    def load(**options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "decoded"))
            return load_data("cifar10", root=data_root, **options)

    return load


@pytest.mark.slow
@pytest.mark.data
def test_the_real_images_split_as_published(real):
    held, halves = real(), real(split="test_halves")
    sizes = [[len(p) for p in (d.train, d.validation, d.test)] for d in (held, halves)]
    assert sizes == [[45_000, 5_000, 10_000], [50_000, 5_000, 5_000]]
    assert torch.bincount(held.validation.labels).tolist() == [500] * 10
    assert torch.equal(held.test.images[5_000:], halves.test.images)
    hashes = [
        {hash(image.tobytes()) for image in part.images.numpy()}
        for part in (held.train, held.validation, held.test)
    ]
    assert [len(part) for part in hashes] == sizes[0]
    assert len(set.union(*hashes)) == 60_000


@pytest.mark.slow
@pytest.mark.data
def test_the_second_load_is_quick(real):
    real(split="test_halves")
    start = time.process_time()
    real(split="test_halves")
    assert time.process_time() - start < 0.5


def test_a_batch_that_asks_for_gigabytes_is_refused(pickle_root):
    place = (2**28).to_bytes(4, "little")
    (pickle_root / "cifar-10-batches-py" / "test_batch").write_bytes(b"}r" + place + b".")
    with pytest.raises(InputError, match="a value at place"):
        load_data("cifar10", root=pickle_root)
