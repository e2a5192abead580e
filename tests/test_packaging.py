import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOPS = ("automl", "envs")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_on_disk_is_packaged():
    on_disk = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for top in TOPS
        for file in (ROOT / top).rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == on_disk | {"automl.conf", "automl.lut"}


def test_every_module_lies_in_a_package():
    orphans = [
        str(file.relative_to(ROOT))
        for top in TOPS
        for file in (ROOT / top).rglob("*.py")
        if not (file.parent / "__init__.py").exists()
    ]
    assert orphans == []


def test_every_requirement_of_the_project_is_pinned():
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    }
    extras = PROJECT["project"]["optional-dependencies"].values()
    required = [*PROJECT["project"]["dependencies"], *(name for extra in extras for name in extra)]
    names = {name.split(">")[0].split("[")[0].strip().lower() for name in required}
    assert names - pinned == {"prunepilot"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel of the repository, built from a copy so that no build/ folder is left here."""
    pytest.importorskip("setuptools")
    here = tmp_path_factory.mktemp("wheel")
    source = here / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "conf", "lut", *TOPS):
        if (ROOT / name).exists():
            subprocess.run(["cp", "-r", str(ROOT / name), str(source)], check=True)
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('..'))"
    subprocess.run(
        [sys.executable, "-c", build], cwd=source, check=True, capture_output=True, timeout=120
    )
    return next(here.glob("*.whl"))


def test_the_wheel_holds_configuration_inside_the_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    groups = [f.relative_to(ROOT).as_posix() for f in (ROOT / "conf").rglob("*.yaml")]
    assert {f"automl/{name}" for name in groups} <= set(names)
    assert "automl/py.typed" in names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(TOPS)


def test_an_unpacked_wheel_finds_its_configuration_and_runs(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import automl.paths as p; print(p.conf_dir());"
        "from automl.cli import main; main(['search', '--cfg', 'job'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[0]) == tmp_path / "automl" / "conf"
    assert "budget:" in done.stdout
