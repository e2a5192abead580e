import contextlib
import os
import stat
import tempfile
from pathlib import Path

import pytest

from automl.paths import atomic_write, conf_dir, lut_dir, whole_folder, why_not_writable


def test_data_directories_exist_in_a_checkout():
    assert (conf_dir() / "config.yaml").is_file()
    assert lut_dir().name == "lut"


def test_atomic_write_replaces_the_whole_file(tmp_path):
    path = tmp_path / "a.txt"
    atomic_write(path, "long old content")
    atomic_write(path, "née")
    assert path.read_bytes() == "née".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_gives_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o022)
    try:
        atomic_write(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "a"
    atomic_write(path, b"old")

    def full_disk(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_directory_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        atomic_write(tmp_path / "absent" / "a", b"x")
    assert caught.value.filename == str(tmp_path / "absent" / "a")


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    out = tmp_path / "new" / "out"
    with pytest.raises(OSError, match="No space") as caught, whole_folder(out) as partial:
        (partial / "first").touch()
        raise OSError(28, "No space left on device", str(partial / "second"))
    assert caught.value.filename == str(out / "second")
    assert list((tmp_path / "new").iterdir()) == []
    with whole_folder(out) as partial:
        (partial / "first").touch()
        assert not out.exists()
    assert list(out.rglob("*")) == [out / "first"]
    assert list((tmp_path / "new").iterdir()) == [out]


def test_an_empty_folder_stays_the_same_folder_when_it_is_filled(tmp_path):
    before = tmp_path.stat().st_ino
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path) as partial:
        (partial / "first").touch()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with whole_folder(tmp_path) as partial:
        (partial / "first").touch()
    assert [file.name for file in tmp_path.iterdir()] == ["first"]
    assert tmp_path.stat().st_ino == before


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="this system has no /proc")
@pytest.mark.parametrize("name", ["/proc", "/proc/x", "/proc/x/y"])
def test_places_that_only_look_writable_are_found_out(name):
    assert why_not_writable(Path(name)) == "No such file or directory"


@contextlib.contextmanager
def without_root():
    """Root may write everywhere, and steps down meanwhile."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_why_not_writable_is_told_before_anything_is_written():
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "file").touch()
        assert why_not_writable(folder / "file" / "new") == "Not a directory"
        assert why_not_writable(folder / ("a" * 300)) == "File name too long"
        folder.chmod(0o555)
        with without_root():
            assert why_not_writable(folder) == "Permission denied"
            assert why_not_writable(folder / "new" / "newer") == "Permission denied"
        folder.chmod(0o777)
        with without_root():
            assert why_not_writable(folder / "new" / "newer") is None
        assert [child.name for child in folder.iterdir()] == ["file"]
