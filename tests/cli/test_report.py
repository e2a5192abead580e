import json
import re
import shutil
import subprocess

import pytest
from command import SEARCH

from automl.cli import main
from automl.report.page import page_data, write_page

pytest.importorskip("plotly", reason="needs the extra report")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two strategies, two seeds, really searched."""
    folder = tmp_path_factory.mktemp("report") / "sweep"
    settings = [part for part in SEARCH[1:] if not part.startswith(("strategy", "seed", "trials"))]
    several = ["strategy=random,uniform", "seed=0,1", "trials=4", f"run_dir={folder}"]
    assert main(["search", "-m", *settings, *several]) == 0
    return folder


def test_the_page_holds_what_the_runs_found(sweep):
    data = page_data([sweep])
    json.dumps(data, allow_nan=False)
    assert len(data["table"]["rows"]) == 2 and "model" not in data["table"]["headings"]
    assert {n["strategy"] for n in data["networks"]} == {"random", "uniform"}
    assert len(data["runs"]) == 4 and data["runs"][0]["uniform"] is not None
    (search,) = data["searches"]
    curves = {curve["strategy"]: curve for curve in search["curves"]}
    assert curves["random"]["seeds"] == 2 and len(curves["random"]["mean"]) == 4
    assert curves["random"]["mean"] == sorted(curves["random"]["mean"])
    assert len(set(curves["uniform"]["mean"])) == 1
    assert data["command"].startswith("prunepilot search model=digits")


def test_one_run_has_figures_and_every_trial(sweep):
    data = page_data([sweep / "strategy=random,seed=0"])
    assert "points over uniform pruning" in {figure["name"] for figure in data["figures"]}
    (search,) = data["searches"]
    assert len(search["curves"][0]["trials"]) == 4


def test_pages_are_small_where_the_script_is_shared_and_whole_where_not(sweep, tmp_path, capsys):
    copy = tmp_path / "sweep"
    shutil.copytree(sweep, copy)
    assert main(["report", str(copy), "--each"]) == 0
    pages = list(copy.rglob("report.html"))
    assert len(pages) == 5 and all(page.stat().st_size < 500_000 for page in pages)
    for page in pages:
        (script,) = re.findall(r'<script src="(.*?)">', page.read_text())
        assert (page.parent / script).is_file()
    alone = write_page([sweep], tmp_path / "alone.html")
    assert alone.stat().st_size < 6_000_000
    assert not re.search(r'<(script|link|img)[^>]*="https?:', alone.read_text())


@pytest.mark.parametrize("out", ["{sweep}", "{tmp}/no/such/report.html"])
def test_where_the_page_cannot_go_is_one_line(sweep, tmp_path, capsys, out):
    file = out.format(sweep=sweep, tmp=tmp_path)
    capsys.readouterr()
    assert main(["report", str(sweep), "--out", file]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(1200, 900), (500, 900)])
def test_a_browser_draws_it_without_errors(sweep, tmp_path, width, height):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs chromium")
    page = write_page([sweep], tmp_path / "page.html")
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
        f"--window-size={width},{height}", "--virtual-time-budget=10000", "--dump-dom",
        page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count('class="main-svg"') >= 3  # pareto, layers, search
    assert "Strategies against uniform pruning" in done.stdout
    # Every control has a name.
    controls = re.findall(r"<(?:select|button)[^>]*>", done.stdout)
    labelled = set(re.findall(r'<label for="(\w+)"', done.stdout))
    for control in controls:
        name = re.search(r'id="(\w+)"', control)
        assert "aria-label" in control or (name and name.group(1) in labelled), control


def test_a_sensitivity_analysis_beside_the_runs_is_drawn(sweep, tmp_path):
    both = tmp_path / "both"
    shutil.copytree(sweep / "strategy=random,seed=0", both / "run")
    settings = [part for part in SEARCH[1:] if part.startswith(("model", "data", "repair"))]
    assert main(["sensitivity", *settings, "trials=9", f"run_dir={both / 'analysis'}"]) == 0
    data = page_data([both])
    assert data["problems"] == [] and data["sensitivity_metric"] == "damage (kl)"
    assert len(data["sensitivity"]) == 8
    assert all(0 < kept < 1 for group in data["sensitivity"] for kept in group["kept"])
