import getpass
import json
import platform

from automl.environment import available_memory, environment, versions


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
