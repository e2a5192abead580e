"""Batches: every image once, normalised exactly, reproducible; the sets behind them untouched."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.data import DataSplits, PadCropFlip, TensorSet

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def images(n=10, dtype=torch.uint8, side=8):
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)
    values = raw if dtype == torch.uint8 else raw.float() / 255
    return TensorSet(values, torch.arange(n) % 4)


def reference(part, mean=MEAN, std=STD):
    """Float64, as torchvision's ToTensor and Normalize do it."""
    x = part.images.double() / (255 if part.images.dtype == torch.uint8 else 1)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (mean, std))
    return (x - mean) / std


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-7), (torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)],
)
def test_batches_are_normalised(kind, dtype, tolerance):
    part = images(dtype=kind)
    x = torch.cat([x for x, _ in part.batches(4, dtype=dtype, mean=MEAN, std=STD)])
    assert x.dtype == dtype
    torch.testing.assert_close(x.double(), reference(part), rtol=tolerance, atol=tolerance)


def test_without_mean_and_std_images_are_scaled_to_one():
    part = images()
    x, _ = next(part.batches(len(part)))
    torch.testing.assert_close(x, part.images / 255)


@given(n=st.integers(1, 40), size=st.integers(1, 50), shuffle=st.booleans())
@settings(max_examples=30)
def test_every_image_comes_once(n, size, shuffle):
    part = TensorSet(torch.zeros(n, 1, 1, 1), torch.arange(n))
    generator = torch.Generator().manual_seed(n)
    labels = [y for _, y in part.batches(size, shuffle=shuffle, generator=generator)]
    assert all(len(y) == size for y in labels[:-1])
    assert sorted(torch.cat(labels).tolist()) == list(range(n))


def test_images_stay_with_their_labels_when_shuffled():
    part = TensorSet(torch.arange(20.0).view(20, 1, 1, 1), torch.arange(20))
    for x, y in part.batches(6, shuffle=True):
        assert torch.equal(x.flatten().long(), y)


def test_drop_last_leaves_out_a_smaller_batch():
    assert [len(y) for _, y in images(10).batches(4, drop_last=True)] == [4, 4]
    assert [len(y) for _, y in images(8).batches(4, drop_last=True)] == [4, 4]


def test_a_pass_repeats_with_its_generators_state_and_no_other_is_touched():
    part, augment = images(), PadCropFlip(pad=2)
    before = torch.get_rng_state()

    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        passes = part.batches(4, shuffle=True, generator=generator, augment=augment)
        return torch.cat([x for x, _ in passes])

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_batches_do_not_write_into_the_set(kind):
    part = images(dtype=kind)
    before = part.images.clone()
    for x, _ in part.batches(4, mean=MEAN, std=STD):
        x.zero_()
    assert torch.equal(part.images, before)


def test_channels_last_is_a_layout_only():
    part = images()
    plain, _ = next(part.batches(10, mean=MEAN, std=STD))
    last, _ = next(part.batches(10, mean=MEAN, std=STD, channels_last=True))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)


def test_other_devices_get_one_copy():
    part = images()
    first = part._on(torch.device("meta"))
    assert part._on(torch.device("meta"))[0] is first[0]
    assert part._on(torch.device("cpu"))[0] is part.images


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_batches_equal_cpu_batches_and_do_not_synchronise():
    part = images(64)
    device = torch.device("cuda", 0)
    options = {"mean": MEAN, "std": STD, "shuffle": True}
    on_cpu = [x for x, _ in part.batches(16, generator=torch.Generator(), **options)]
    passes = part.batches(16, device, generator=torch.Generator(), channels_last=True, **options)
    augmented = part.batches(16, device, torch.float16, augment=PadCropFlip(), **options)
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu = [x for x, _ in passes]
        for _ in augmented:
            pass
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(on_cpu, on_gpu, strict=True):
        torch.testing.assert_close(a, b.cpu())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2, "dtype": torch.int64}, "dtype must be a floating type"),
        ({"batch_size": 2, "mean": (0.5,)}, "mean must have one value for each of 3 channels"),
        ({"batch_size": 2, "std": (1.0, 0.0, 1.0)}, "std must be positive"),
    ],
)
def test_wrong_options_are_refused_before_the_first_batch(options, message):
    with pytest.raises(ValueError, match=message):
        images().batches(**options)


@pytest.mark.parametrize(
    ("pictures", "labels", "message"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.int64), "images must be uint8"),
        (torch.zeros(2, 3, 4, 4).double(), torch.zeros(2, dtype=torch.int64), "images must be"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(3, dtype=torch.int64), r"of shape \(2,\)"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2), "labels must be int64"),
    ],
)
def test_sets_check_shapes_and_types(pictures, labels, message):
    with pytest.raises(ValueError, match=message):
        TensorSet(pictures, labels)


def test_calibration_is_a_balanced_seeded_part_of_the_training_images():
    train = images(40)
    data = DataSplits(
        "x", train, images(4), images(4), MEAN, STD, ("a", "b", "c", "d"), "holdout", "0"
    )
    some = data.calibration(8, seed=1)
    assert torch.bincount(some.labels).tolist() == [2, 2, 2, 2]
    known = {image.numpy().tobytes() for image in train.images}
    assert all(image.numpy().tobytes() in known for image in some.images)
    assert torch.equal(some.images, data.calibration(8, seed=1).images)
    assert not torch.equal(some.images, data.calibration(8, seed=2).images)
    assert len(data.calibration(1000)) == 40
    with pytest.raises(ValueError, match="at least 1"):
        data.calibration(0)
    assert data.num_classes == 4


# Augmentation


@given(pad=st.integers(0, 4), flip=st.booleans(), seed=st.integers(0, 2**32))
@settings(max_examples=30)
def test_every_augmented_image_is_a_shift_and_mirror_of_its_own(pad, flip, seed):
    part = images(6)
    out = PadCropFlip(pad, flip)(part.images, torch.Generator().manual_seed(seed))
    assert out.shape == part.images.shape
    assert out.dtype == torch.uint8
    for image, changed in zip(part.images.numpy(), out.numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
        crops = [
            padded[:, top : top + 8, left : left + 8]
            for top in range(2 * pad + 1)
            for left in range(2 * pad + 1)
        ]
        mirrored = [crop[:, :, ::-1] for crop in crops] if flip else []
        assert any(np.array_equal(changed, crop) for crop in crops + mirrored)


def test_augmentation_uses_all_shifts_and_mirrors_half():
    image = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    image[0, 0, 2, 1] = 255
    out = PadCropFlip(pad=1)(image.expand(4000, -1, -1, -1), torch.Generator().manual_seed(0))
    counts = (out[:, 0] > 0).float().mean(0)[1:4]
    # Columns 0 to 2 are shifts of column 1, columns 2 to 4 those of its mirror image.
    expected = torch.tensor([1, 1, 2, 1, 1]).expand(3, 5) / 18
    torch.testing.assert_close(counts, expected, atol=0.02, rtol=0)


def test_a_negative_pad_is_refused():
    with pytest.raises(ValueError, match="pad must be at least 0"):
        PadCropFlip(pad=-1)
