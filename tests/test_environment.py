import getpass
import json
import math
import platform

import pytest

from automl.environment import (
    available_memory,
    cpu_name,
    environment,
    left_of_the_group,
    versions,
)


def test_it_is_plain_data_with_what_results_depend_on():
    found = json.loads(json.dumps(environment()))
    assert found["python"] == platform.python_version()
    assert found["packages"]["torch"]
    assert found["threads"] >= 1
    assert isinstance(found["cpu_features"], list)


def test_it_names_neither_the_host_nor_a_path():
    text = json.dumps({key: value for key, value in environment().items() if key != "cpu"})
    assert "/" not in text
    assert platform.node() not in text.split('"') and f'"{getpass.getuser()}"' not in text


def test_a_package_that_is_missing_has_no_version(monkeypatch):
    monkeypatch.setattr("automl.environment.PACKAGES", ("no-such-package",))
    assert versions() == {"no-such-package": None}


def test_the_memory_that_can_be_had_is_a_number_of_bytes(monkeypatch):
    assert available_memory() > 1 << 20
    monkeypatch.setattr("pathlib.Path.read_text", lambda *args, **kwargs: "MemAvailable:\n")
    assert available_memory() > 1 << 20  # from the size of the whole


@pytest.mark.parametrize("version", [1, 2])
def test_the_memory_of_a_job_is_what_its_limit_leaves(tmp_path, version, monkeypatch):
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    groups, mounted = tmp_path / "cgroup", tmp_path / "mounted"
    groups.write_text({1: "5:cpu:/\n4:memory:/jobs/a\n", 2: "0::/jobs/a\n"}[version])
    top = mounted / "memory" if version == 1 else mounted
    for folder, limit, used in ((top / "jobs" / "a", "max", 10), (top / "jobs", "1000", 300)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / names[0]).write_text(f"{limit}\n")
        (folder / names[1]).write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"active_file 7\n{names[2]} 200\n")
    assert left_of_the_group(groups, mounted) == 900
    assert left_of_the_group(tmp_path / "none", mounted) == math.inf
    monkeypatch.setattr("automl.environment.left_of_the_group", lambda: 900.0)
    assert available_memory() == 900


@pytest.mark.parametrize(
    ("info", "name"),
    [
        ({"model name": "AMD EPYC", "CPU part": "1"}, "AMD EPYC"),
        ({"CPU implementer": "0x41", "CPU part": "0xd0c"}, "aarch64 0x41 0xd0c"),
        ({"CPU implementer": "0x41", "CPU part": "0xd08"}, "aarch64 0x41 0xd08"),
        ({}, "aarch64"),
    ],
)
def test_processors_that_name_no_model_are_told_by_their_core(monkeypatch, info, name):
    monkeypatch.setattr("automl.environment._cpuinfo", lambda: info)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert cpu_name() == name
