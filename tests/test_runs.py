import json
import subprocess
import sys

import pytest

from automl.runs import CONFIG, ENVIRONMENT, RunFolder, from_yaml, to_yaml
from automl.types import InputError

SETTINGS = {"seed": 0, "budget": {"macs": 0.5, "params": None}, "run_dir": "runs/a"}


def environment() -> dict[str, str]:
    return {"python": "3"}


def started(path) -> RunFolder:
    folder = RunFolder(path)
    with folder.lock():
        folder.start(SETTINGS, environment)
    return folder


def test_a_new_run_is_written_and_read_back(tmp_path):
    folder = started(tmp_path / "deep" / "run")
    assert folder.is_run and not folder.is_done
    assert folder.config() == {**SETTINGS, "run_dir": str(folder.path)}
    assert json.loads(folder.file(ENVIRONMENT).read_text()) == environment()


def test_the_same_settings_may_start_again_without_touching_a_file(tmp_path):
    folder = started(tmp_path / "run")
    before = {file.name: file.stat().st_mtime_ns for file in folder.path.iterdir()}
    folder.start({**SETTINGS, "run_dir": "elsewhere"}, lambda: pytest.fail("written again"))
    assert before == {file.name: file.stat().st_mtime_ns for file in folder.path.iterdir()}


def test_another_run_is_refused_and_named(tmp_path):
    folder = started(tmp_path / "run")
    content = folder.file(CONFIG).read_bytes()
    other = {**SETTINGS, "budget": {"macs": 0.3, "params": None}}
    with pytest.raises(InputError, match=r"holds another run \(budget.macs: 0.5 there, 0.3 here\)"):
        folder.start(other, environment)
    assert folder.file(CONFIG).read_bytes() == content


def test_a_setting_on_one_side_only_makes_another_run(tmp_path):
    folder = started(tmp_path / "run")
    with pytest.raises(InputError, match="trials: None there, 3 here"):
        folder.check_free_for({**SETTINGS, "trials": 3})


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("do not lose me")
    with pytest.raises(InputError, match="holds files that are no run"):
        RunFolder(tmp_path).start(SETTINGS, environment)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_how_to_resume_names_what_has_to_be_trusted(tmp_path):
    folder = RunFolder(tmp_path / "a run")
    with folder.lock():
        folder.start(
            {"model": {"factory": "my.nets.net"}, "strategy": {"_target_": "other.Best"}},
            environment,
        )
    command = f"prunepilot resume '{folder.path}' --trust other --trust my.nets"
    assert folder.how_to_resume == command
    assert " --trust" not in started(tmp_path / "own").how_to_resume


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="is a file"):
        RunFolder(tmp_path / "run").check_free_for(SETTINGS)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "just words"])
def test_a_broken_config_is_bad_input(tmp_path, text):
    (tmp_path / CONFIG).write_text(text)
    with pytest.raises(InputError, match=r"config.yaml: not"):
        RunFolder(tmp_path).config()


def test_a_folder_without_a_run_is_bad_input(tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        RunFolder(tmp_path / "absent").config()


def test_only_one_process_holds_a_folder_and_a_killed_one_lets_go(tmp_path):
    code = (
        "import sys, time, pathlib; from automl.runs import RunFolder\n"
        f"with RunFolder(pathlib.Path({str(tmp_path)!r})).lock():\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(InputError, match="in use by another process"), RunFolder(tmp_path).lock():
        pass
    holder.kill()
    holder.communicate()
    with RunFolder(tmp_path).lock():
        pass


def test_yaml_keeps_values_and_order():
    settings = {"z": 1e-05, "a": [1, None, "x: y"], "m": {"é": True}}
    assert from_yaml(to_yaml(settings)) == settings
    assert list(from_yaml(to_yaml(settings))) == ["z", "a", "m"]


def test_a_run_goes_on_with_the_latency_table_that_it_began_with_or_not_at_all(tmp_path):
    folder = RunFolder(tmp_path)
    began = {"limit_ms": 0.3012, "dense_ms": 0.6024}
    folder.pin(began)
    folder.pin(began)
    with pytest.raises(InputError, match=r"another latency table .*0\.3012 ms, here 0\.2993 ms"):
        folder.pin({"limit_ms": 0.2993, "dense_ms": 0.6024})
    (tmp_path / "latency_limit.json").write_text("[]")
    with pytest.raises(InputError, match="is damaged"):
        folder.pin(began)
