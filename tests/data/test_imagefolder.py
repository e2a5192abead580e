"""Folders of pictures: what is found, what is held out, what is refused."""

import numpy as np
import pytest
import torch
from made import write_pictures
from PIL import Image

from automl.commands.build import Bench
from automl.commands.compose import compose
from automl.data import load_data
from automl.data.formats.pictures import decode
from automl.models import load_model
from automl.types import InputError


def load(root, **options):
    return load_data("imagefolder", root=root, **{"size": 16, **options})


def sizes(data):
    return [len(part) for part in (data.train, data.validation, data.test)]


def test_validation_and_test_are_held_out_of_training_where_they_have_no_folder(picture_root):
    data = load(picture_root)
    assert sizes(data) == [48, 6, 6]
    assert data.classes == ("ant", "bee", "cat")
    assert torch.bincount(data.validation.labels).tolist() == [2, 2, 2]
    assert data.train.images.shape == (48, 3, 16, 16)
    assert data.train.images.dtype == torch.uint8
    assert data.from_train == ("validation", "test")
    assert sizes(load(picture_root, validation_size=9)) == [45, 9, 6]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_folders_of_their_own_are_used(picture_root, name):
    write_pictures(picture_root / name, {"ant": 4, "cat": 2}, seed=1)
    data = load(picture_root)
    assert sizes(data) == [60, 3, 3]  # halves: of train nobody knows what the weights have seen
    assert sizes(load(picture_root, validation_size=2)) == [60, 2, 3]
    assert data.from_train == ()
    assert (
        sorted([*data.validation.labels.tolist(), *data.test.labels.tolist()]) == [0] * 4 + [2] * 2
    )
    write_pictures(picture_root / "test", {"bee": 5}, seed=2)
    data = load(picture_root)
    assert sizes(data) == [60, 6, 5]
    assert data.validation.labels.tolist() == [0, 0, 0, 0, 2, 2]
    assert sizes(load(picture_root, validation_size=3)) == [60, 3, 5]


def test_a_test_folder_alone_stays_whole(picture_root):
    write_pictures(picture_root / "test", {"bee": 5}, seed=2)
    data = load(picture_root)
    assert sizes(data) == [54, 6, 5] and data.from_train == ("validation",)


@pytest.mark.parametrize("folder", ["val", "test"])
def test_test_halves_share_the_held_out_folder_class_by_class(picture_root, folder):
    write_pictures(picture_root / folder, {"ant": 6, "bee": 6, "cat": 6}, seed=1)
    data = load(picture_root, split="test_halves")
    assert sizes(data) == [60, 9, 9]
    assert torch.bincount(data.validation.labels).tolist() == [3, 3, 3]
    assert torch.bincount(data.test.labels).tolist() == [3, 3, 3]
    whole = {image.numpy().tobytes() for p in (data.validation, data.test) for image in p.images}
    assert len(whole) == 18


def test_a_limit_decodes_no_more_than_it_keeps(picture_root, cache):
    assert sizes(load(picture_root, limit=3)) == [3, 3, 3]
    (entry,) = (cache / "prunepilot" / "decoded").iterdir()
    assert len(np.load(entry / "images.npy")) == 9


def test_another_seed_decodes_nothing_new(picture_root, cache):
    first, second = load(picture_root), load(picture_root, seed=1)
    assert first.fingerprint != second.fingerprint
    assert len(list((cache / "prunepilot" / "decoded").iterdir())) == 1


def test_pictures_are_scaled_by_the_shorter_side_and_cropped_at_the_centre(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    pixels = decode(tmp_path / "wide.png", "wide", 10)
    assert pixels.shape == (3, 10, 10)
    assert (pixels == 200).all()
    assert decode(tmp_path / "wide.png", "wide", 7).shape == (3, 7, 7)
    assert decode(tmp_path / "wide.png", "wide", 40).shape == (3, 40, 40)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_other_colour_modes_become_rgb(tmp_path, mode):
    Image.new(mode, (8, 8)).save(tmp_path / "x.png")
    assert decode(tmp_path / "x.png", "x").shape == (3, 8, 8)


@pytest.mark.parametrize(("kind", "suffix"), [(np.uint16, "png"), (np.int32, "ppm")])
def test_grey_of_16_bits_is_scaled_to_8(tmp_path, kind, suffix):
    grey = np.array([[0, 128, 129, 257], [32768, 65000, 65406, 65535]])
    Image.fromarray(grey.astype(kind)).save(tmp_path / f"x.{suffix}")
    pixels = decode(tmp_path / f"x.{suffix}", "x")
    assert pixels.shape == (3, 2, 4)
    assert (pixels == np.round(grey / 257)).all()


@pytest.mark.parametrize("value", [-1, 65536])
def test_grey_of_more_bits_is_refused(tmp_path, value):
    Image.fromarray(np.full((4, 4), value, np.int32)).save(tmp_path / "x.tiff")
    with pytest.raises(InputError, match="grey of more than 16 bits"):
        decode(tmp_path / "x.tiff", "x")


def test_a_picture_of_far_too_many_pixels_is_refused_in_one_line(tmp_path, monkeypatch):
    Image.new("L", (40, 40)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match=r"x is too large \(.*1600 pixels") as caught:
        decode(tmp_path / "x.png", "x")
    assert "\n" not in str(caught.value)


def test_hidden_folders_and_other_files_are_passed_over(picture_root):
    (picture_root / "train" / ".cache").mkdir()
    (picture_root / "train" / "ant" / "notes.txt").touch()
    (picture_root / "train" / "README").touch()
    assert sizes(load(picture_root)) == [48, 6, 6]


def test_an_unreadable_picture_is_named(picture_root):
    (picture_root / "train" / "bee" / "007.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"bee/007\.png is not a whole picture"):
        load(picture_root)


def test_a_root_without_train_says_where_pictures_must_lie(tmp_path):
    with pytest.raises(InputError, match=r"has no folder train: pictures must lie in .*CLASS"):
        load(tmp_path)


def test_folders_that_cannot_be_split_are_refused(picture_root, tmp_path):
    write_pictures(tmp_path / "one" / "train", {"ant": 3})
    with pytest.raises(InputError, match="a folder per class, at least 2, got 1"):
        load(tmp_path / "one")
    (picture_root / "train" / "dog").mkdir()
    with pytest.raises(InputError, match="dog holds no pictures"):
        load(picture_root)
    (picture_root / "train" / "dog").rmdir()
    with pytest.raises(InputError, match="below the 60 training images"):
        load(picture_root, validation_size=60)
    with pytest.raises(InputError, match="leaves 5 training pictures, too few to hold 6 out"):
        load(picture_root, validation_size=55)
    with pytest.raises(InputError, match="test_halves needs a folder test or val"):
        load(picture_root, split="test_halves")


def test_a_class_that_training_does_not_have_is_refused(picture_root):
    write_pictures(picture_root / "test", {"dog": 1})
    with pytest.raises(InputError, match="dog is a class that train does not have"):
        load(picture_root)


def test_an_empty_test_folder_is_refused(picture_root):
    (picture_root / "test" / "ant").mkdir(parents=True)
    with pytest.raises(InputError, match="test holds no pictures"):
        load(picture_root)


def test_it_is_told_where_weights_may_have_seen_what_is_held_out(picture_root, capsys):
    settings = ["model=torchvision:resnet18", "data=imagefolder", f"data.root={picture_root}"]

    def said(*more):
        bench = Bench(compose([*settings, "data.size=32", *more]))
        vars(bench)["complete"] = load_model("torch.nn.Flatten", input_shape=(3, 32, 32))
        assert bench.data.from_train == ("validation", "test")
        return capsys.readouterr().err

    weights = "model.kwargs.weights=DEFAULT"
    assert "which the weights may have seen" in said(weights)
    assert "model.trained_on=all_train" in said("model.checkpoint=own.pt")
    assert said(weights, "model.trained_on=train") == ""
    for random in ((), ("+model.kwargs.weights=null",)):
        (line,) = said(*random).splitlines()
        assert line.startswith("no weights were loaded")


def test_a_link_to_nowhere_is_named(picture_root):
    (picture_root / "train" / "ant" / "gone.png").symlink_to(picture_root / "nowhere.png")
    with pytest.raises(InputError, match=r"gone\.png cannot be read: No such file"):
        load(picture_root)
