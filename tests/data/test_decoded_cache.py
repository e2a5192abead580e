"""The cache of decoded images: decodes once, notices changes and damage, never half an entry."""

import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from automl.data import cache as module
from automl.data.cache import Decoding, cache_dir, decoded
from automl.types import InputError

IMAGES = np.arange(5 * 3 * 2 * 2, dtype=np.uint8).reshape(5, 3, 2, 2)
LABELS = np.arange(5, dtype=np.int64)


class Decoder:
    """Counts how often it is asked."""

    def __init__(self, shape=IMAGES.shape):
        self.calls = 0
        self.shape = shape

    def __call__(self):
        self.calls += 1
        return Decoding(self.shape, iter([(IMAGES[:2], LABELS[:2]), (IMAGES[2:], LABELS[2:])]))


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / "a.bin", tmp_path / "b.bin"]
    for path in paths:
        path.write_bytes(b"x")
    return paths


def entries(cache):
    folder = cache / "prunepilot" / "decoded"
    return sorted(folder.iterdir()) if folder.exists() else []


def test_the_second_load_decodes_nothing(files, cache):
    decoder = Decoder()
    first, second = (decoded("toy", files, "", decoder) for _ in range(2))
    assert decoder.calls == 1
    for content in (first, second):
        assert np.array_equal(content.images, IMAGES)
        assert np.array_equal(content.labels, LABELS)
    assert first.digest == second.digest
    assert isinstance(second.images, np.memmap)


def test_writing_into_an_array_leaves_the_cache_alone(files):
    decoded("toy", files, "", Decoder()).images[:] = 0
    assert np.array_equal(decoded("toy", files, "", Decoder()).images, IMAGES)


@pytest.mark.parametrize("change", ["content", "time", "settings", "files"])
def test_a_change_decodes_again(files, change):
    decoder, settings = Decoder(), ""
    decoded("toy", files, settings, decoder)
    if change == "content":
        files[0].write_bytes(b"xy")
    elif change == "time":
        os.utime(files[1], (1, 1))
    elif change == "settings":
        settings = "32"
    else:
        files = files[:1]
    decoded("toy", files, settings, decoder)
    assert decoder.calls == 2


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["truncate", "empty", "remove"])
def test_a_damaged_entry_is_replaced(files, cache, name, damage):
    decoded("toy", files, "", Decoder())
    path = entries(cache)[0] / name
    whole = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else whole[: len(whole) - 3])
    decoder = Decoder()
    assert np.array_equal(decoded("toy", files, "", decoder).images, IMAGES)
    assert decoder.calls == 1
    assert path.read_bytes() == whole


def test_a_failed_decoding_leaves_nothing(files, cache):
    def decode():
        def chunks():
            yield IMAGES[:2], LABELS[:2]
            raise InputError("row 3 is no picture")

        return Decoding(IMAGES.shape, chunks())

    with pytest.raises(InputError, match="row 3"):
        decoded("toy", files, "", decode)
    assert entries(cache) == []


def test_what_a_crash_left_is_cleared_once_it_is_old(files, cache):
    decoded("toy", files, "", Decoder())
    entry = entries(cache)[0]
    old, young = (entry.parent / f".{entry.name}.{name}.partial" for name in ("aa", "bb"))
    old.mkdir()
    young.mkdir()
    os.utime(old, (1, 1))
    (entry / "meta.json").unlink()
    decoded("toy", files, "", Decoder())
    assert entries(cache) == [young, entry]


def test_another_process_that_was_faster_is_not_disturbed(files, cache, monkeypatch):
    begin = module._begin

    def begin_after_the_other(entry):
        monkeypatch.setattr(module, "_begin", begin)
        decoded("toy", files, "", Decoder())
        return begin(entry)

    monkeypatch.setattr(module, "_begin", begin_after_the_other)
    assert np.array_equal(decoded("toy", files, "", Decoder()).images, IMAGES)
    assert len(entries(cache)) == 1


def test_without_a_writable_cache_images_are_decoded_in_memory(files, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.warns(RuntimeWarning, match="is not writable.*set XDG_CACHE_HOME"):
        content = decoded("toy", files, "", Decoder())
    assert np.array_equal(content.images, IMAGES)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "good"))
    assert decoded("toy", files, "", Decoder()).digest == content.digest


def test_a_full_disk_is_said_before_anything_is_written(files, cache):
    with pytest.raises(InputError, match=r"need .* GB .*set data\.limit"):
        decoded("toy", files, "", Decoder(shape=(10**9, 3, 224, 224)))
    assert entries(cache) == []


@pytest.mark.parametrize(
    ("platform", "tail"),
    [
        ("linux", ".cache/prunepilot"),
        ("darwin", "Library/Caches/prunepilot"),
        ("win32", "AppData/Local/prunepilot"),
    ],
)
def test_the_cache_lies_where_the_platform_keeps_caches(monkeypatch, tmp_path, platform, tail):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_dir() == tmp_path / tail


def test_no_warning_in_the_usual_case(files):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded("toy", files, "", Decoder())
