import subprocess
import sys

import pytest

from automl.cli import VERBS
from automl.commands import options
from automl.paths import conf_dir


def test_the_command_alone_lists_its_verbs(cli):
    result = cli()
    assert result.code == 0
    assert all(verb in result.out for verb in VERBS)


def test_version(cli):
    assert cli("--version").out == "prunepilot 0.1.0\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_an_example(cli, verb):
    result = cli(verb, "--help")
    assert result.code == 0
    assert f"\n  prunepilot {verb}" in result.out


@pytest.mark.parametrize("verb", ["search", "trace", "prune"])
def test_help_shows_every_group_option_and_key(cli, verb):
    text = cli(verb, "--help").out
    for file in conf_dir().rglob("*.yaml"):
        assert file.stem in text or file.stem == "config"
    for key in ("budget.macs", "granularity.rounding", "trials:", "run_dir:"):
        assert key in text


def test_every_option_says_what_it_is():
    silent = [
        f"{group}/{option}"
        for group, about in options.groups().items()
        for option, text in about.items()
        if not text
    ]
    assert silent == []


def test_cfg_prints_the_resolved_settings_and_runs_nothing(cli, tmp_path):
    result = cli("search", "seed=7", f"run_dir={tmp_path / 'a'}", "--cfg", "job")
    assert result.code == 0
    assert "\nseed: 7\n" in result.out
    assert "${" not in result.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--help"], ["search", "--help"], ["--version"], []])
def test_help_imports_nothing_that_is_slow(arguments):
    slow = {
        "torch", "numpy", "scipy", "pandas", "pyarrow", "sklearn", "numba", "hydra", "omegaconf",
        "rich", "plotly", "matplotlib", "gymnasium", "stable_baselines3", "optuna", "onnx",
        "onnxruntime", "PIL",
    }  # fmt: skip
    code = (
        f"import sys; from automl.cli import main; assert main({arguments}) == 0;"
        f"print(*({slow} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.split() == []


def test_doctor_reports_versions_and_devices(cli):
    result = cli("doctor")
    assert result.code == 0
    for word in ("torch", "python", "cpu_features", "threads", "cuda_devices"):
        assert word in result.out
