import json
import re
import shutil

import pytest
from browser import CHROMIUM, Browser
from command import SEARCH

from automl.cli import main
from automl.report.page import page_data, write_page

pytest.importorskip("plotly", reason="needs the extra report")

# As prunepilot bench writes it; the times are made up, the page's arithmetic is what is tested.
BENCH = {
    "device": "a CPU", "threads": 1, "batch": 1, "busy_cores": 0.0, "dense_form": "onnxruntime",
    "dense_ms": 0.5, "sparse_ms": 0.25,
    "networks": {"dense": {"median_ms": 0.5}, "sparse": {"median_ms": 0.25}},
    "rows": [
        {"layer": "fc1", "format": "csc", "used": False, "dense_ms": 0.2, "sparse_ms": 0.3},
        {"layer": "fc1", "format": "pell", "used": True, "dense_ms": 0.2, "sparse_ms": 0.1},
        {"layer": "fc2", "format": "csc", "used": True, "dense_ms": 0.2, "sparse_ms": None},
    ],
}  # fmt: skip

# Pairs of axis titles, tick labels and legend entries whose boxes meet.
OVERLAPS = """
[...document.querySelectorAll('.plot')].flatMap((plot) => {
  const texts = [...plot.querySelectorAll('.xtitle, .ytitle, .legendtext, .ytick text')]
    .filter((t) => t.textContent);
  const boxes = texts.map((t) => t.getBoundingClientRect());
  const found = [];
  boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b, j) => {
    const across = a.left < b.right - 1 && b.left < a.right - 1;
    if (across && a.top < b.bottom - 1 && b.top < a.bottom - 1)
      found.push(plot.id + ': ' + texts[i].textContent + ' | ' + texts[i + 1 + j].textContent);
  }));
  return found;
})
"""


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
    assert data["command"].startswith("prunepilot search -m model=digits")


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


def test_nothing_is_written_where_there_are_no_runs(tmp_path, capsys):
    assert main(["report", str(tmp_path), "--each"]) == 2
    assert "holds no runs" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def page(sweep, tmp_path_factory):
    """Everything a page can show but sensitivity curves, which have their own test."""
    folder = tmp_path_factory.mktemp("page") / "sweep"
    shutil.copytree(sweep, folder)
    (folder / "strategy=random,seed=0" / "bench.json").write_text(json.dumps(BENCH))
    return write_page([folder], folder / "page.html")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_it_without_errors(browser, page, width, scheme):
    browser.open(page, width, scheme)
    assert browser.errors == []  # exceptions, console messages, requests
    drawn = "[...document.querySelectorAll('section:not([hidden]) .plot .main-svg')].length"
    assert browser.run(drawn) >= 4  # pareto, layers, search, kernels
    assert browser.run("document.documentElement.dataset.theme") == scheme
    # Nothing sticks out sideways: a phone does not scroll the page.
    assert browser.run("document.documentElement.scrollWidth") <= width
    overlapping = browser.run(OVERLAPS)
    assert overlapping == []
    # Every control that takes the focus has a name.
    controls = [(role, name) for role, name in browser.names() if role != "RootWebArea"]
    assert {"button", "combobox"} <= {role for role, _ in controls}
    assert [role for role, name in controls if not name] == []


@pytest.mark.slow
def test_the_controls_of_the_page_work(browser, page):
    browser.open(page, 1280, "light")
    title = "document.querySelector('#plot-pareto .xtitle').textContent"
    first = browser.run(title)
    browser.run(
        "at('cost').selectedIndex = 1; at('cost').dispatchEvent(new Event('change')); "
        "at('theme').click(); at('run').selectedIndex = 1; "
        "at('run').dispatchEvent(new Event('change'))"
    )
    assert browser.run(title) != first
    assert browser.run("document.documentElement.dataset.theme") == "dark"
    assert browser.run("at('layer-table').rows.length") == 9  # headings and eight groups
    assert browser.errors == []


def test_times_of_layers_come_from_bench(sweep, tmp_path):
    copy = tmp_path / "sweep"
    shutil.copytree(sweep, copy)
    assert page_data([copy])["benches"] == []
    (copy / "strategy=random,seed=0" / "bench.json").write_text(json.dumps(BENCH))
    (copy / "strategy=random,seed=1" / "bench.json").write_text('{"rows": []}')
    data = page_data([copy])
    (bench,) = data["benches"]
    # The layer's other format is not what runs, and one without a time is left out.
    assert [row["format"] for row in bench["rows"]] == ["pell"]
    assert ["dense (ONNX Runtime)", 0.5] in bench["totals"]
    (problem,) = data["problems"]
    assert "seed=1/bench.json: unreadable" in problem


def test_a_sensitivity_analysis_beside_the_runs_is_drawn(sweep, tmp_path):
    both = tmp_path / "both"
    shutil.copytree(sweep / "strategy=random,seed=0", both / "run")
    settings = [part for part in SEARCH[1:] if part.startswith(("model", "data", "repair"))]
    assert main(["sensitivity", *settings, "trials=9", f"run_dir={both / 'analysis'}"]) == 0
    data = page_data([both])
    assert data["problems"] == [] and data["sensitivity_metric"] == "damage (kl)"
    assert len(data["sensitivity"]) == 8
    assert all(0 < kept < 1 for group in data["sensitivity"] for kept in group["kept"])
