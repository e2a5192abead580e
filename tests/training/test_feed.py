import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from automl.data.augment import PadCropFlip
from automl.data.tensors import TensorSet
from automl.training.feed import BatchSource, Feed, epoch_seed

CPU = torch.device("cpu")


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (21, 3, 6, 6), dtype=torch.uint8, generator=generator)
    return TensorSet(pixels, torch.arange(21))


def order(feed, epoch):
    return torch.cat([y for _, y in feed.epoch(epoch)]).tolist()


def test_tensor_sets_are_batch_sources_and_lists_are_not(images):
    assert isinstance(images, BatchSource)
    assert not isinstance([], BatchSource)


def test_epochs_repeat_and_differ_from_each_other(images):
    augment = PadCropFlip(pad=1)
    first, again, other = (
        Feed(images, 8, seed, CPU, (0.5,) * 3, (0.2,) * 3, augment) for seed in (0, 0, 1)
    )
    for (x, y), (x2, y2) in zip(first.epoch(3), again.epoch(3), strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)
    assert sorted(order(first, 1)) == list(range(21))
    orders = [order(first, 1), order(first, 2), order(other, 1), list(range(21))]
    assert len({tuple(each) for each in orders}) == 4


def test_steps_count_the_smaller_last_batch(images):
    feed = Feed(images, 8, 0, CPU)
    assert feed.steps == len(list(feed.epoch(1))) == 3


@pytest.mark.parametrize(
    ("examples", "batch_size", "sizes"),
    [(17, 8, [8, 8]), (18, 8, [8, 8, 2]), (9, 8, [8]), (1, 8, [1]), (3, 1, [1, 1, 1]), (0, 8, [])],
)
def test_one_image_left_over_is_no_batch(images, examples, batch_size, sizes):
    feed = Feed(images.subset(slice(examples)), batch_size, 0, CPU)
    assert [len(x) for x, _ in feed.epoch(1)] == sizes
    assert feed.steps == len(sizes)


@pytest.mark.parametrize("channels_last", [False, True])
def test_ready_batches_are_the_readers_to_write_into(channels_last):
    batches = [(torch.rand(2, 3, 4, 4), None), (torch.rand(2, 5), None)]
    before = [x.clone() for x, _ in batches]
    for x, _ in Feed(batches, 8, 0, CPU, channels_last=channels_last).epoch(1):
        x.zero_()
    assert all(torch.equal(x, old) for (x, _), old in zip(batches, before, strict=True))


def test_ready_batches_come_as_they_are():
    batches = [(torch.rand(2, 3, 4, 4), torch.tensor([0, 1])), (torch.rand(1, 3, 4, 4), None)]
    feed = Feed(batches, 8, 0, CPU, channels_last=True)
    got = list(feed.epoch(1))
    assert feed.steps == 2
    assert torch.equal(got[0][0], batches[0][0]) and got[1][1] is None
    assert got[0][0].is_contiguous(memory_format=torch.channels_last)


def test_a_data_loader_is_ready(images):
    loader = DataLoader(TensorDataset(torch.rand(5, 2), torch.arange(5)), batch_size=2)
    feed = Feed(loader, 64, 0, CPU)
    assert feed.steps == 3 and order(feed, 1) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name, value", [("mean", (0.5,)), ("std", (0.5,)), ("augment", print)])
def test_what_ready_batches_would_ignore_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"finetune\.{name} must be None for batches that are"):
        Feed([], 8, 0, CPU, **{name: value})


def test_fingerprints_tell_data_apart(images):
    flipped = TensorSet(images.images.flip(0), images.labels)
    feeds = [
        Feed(images, 8, 0, CPU),
        Feed(flipped, 8, 0, CPU),
        Feed(images.subset(slice(5)), 8, 0, CPU),
        Feed(images, 8, 0, CPU, mean=(0.5,) * 3),
        Feed(images, 8, 0, CPU, std=(0.5,) * 3),
        Feed(images, 8, 0, CPU, augment=PadCropFlip(1)),
        Feed(images, 8, 0, CPU, augment=PadCropFlip(2)),
        Feed(images, 8, 0, CPU, augment=lambda x, generator: x),
        Feed([], 8, 0, CPU),
        Feed([(None, None)], 8, 0, CPU),
    ]
    assert len({feed.fingerprint() for feed in feeds}) == len(feeds)


def test_fingerprints_do_not_name_addresses(images):
    class Noise:
        def __call__(self, x, generator):
            return x

    feeds = [Feed(images, 8, 0, CPU, augment=Noise()) for _ in range(2)]
    assert feeds[0].fingerprint() == feeds[1].fingerprint()


def test_epoch_seeds_are_spread_and_fit_a_generator():
    seeds = {epoch_seed(seed, epoch) for seed in range(30) for epoch in range(30)}
    assert len(seeds) == 900 and all(0 <= seed < 2**63 for seed in seeds)
