"""``prunepilot lut`` and latency budgets, on the digits network and a clock that is made up."""

import csv
import json
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest

from automl.cost.lut.entry import Entry
from automl.cost.lut.table import Table
from automl.executors.latency_meter import CpuMeter
from automl.executors.latency_table import NetworkTable


def made_up_us(signature):
    """Grows with the work; odd counts are slower, as on real devices."""
    work = signature.in_channels * signature.out_channels / signature.groups
    work *= max(1, int(np.prod(signature.kernel))) * signature.height * signature.width
    waste = 1.3 if signature.out_channels % 8 else 1.0
    return 2.0 + 1e-3 * work * waste


@pytest.fixture
def clock(monkeypatch):
    """Replaces the clocks of operators and networks; counts what was measured."""
    measured = []

    def meter(self, wanted, network):
        found = [(s, Entry(12, round(made_up_us(s), 3), 0.5, 0.0)) for s in wanted]
        measured.extend(signature for signature, _ in found)
        yield found

    def time(self, kept, budget_s):
        sums = [sum(map(made_up_us, self.operators.at(row))) for row in kept]
        return [1.2 * total / 1e3 + 0.05 for total in sums]

    monkeypatch.setattr(CpuMeter, "__call__", meter)
    monkeypatch.setattr(NetworkTable, "time", time)
    monkeypatch.setattr("automl.executors.latency_table.require_quiet", lambda wait_s: None)
    return measured


@pytest.fixture
def lut(tmp_path):
    return tmp_path / "lut"


def settings(lut, *more):
    return ["model=digits", "device=cpu", f"latency.table={lut}", *more]


def the_table(lut):
    (path,) = lut.glob("*.json")
    return path


def rows_of(lut):
    text = the_table(lut).with_suffix(".csv").read_text()
    return list(csv.DictReader(text.splitlines()))


def search(cli, lut, run, *more):
    return cli(
        "search", *settings(lut, "data=digits", "strategy=random", "budget=none"), "repair=none",
        "budget.latency_ms=0.6", "trials=2", "latency_budget_s=0.01", f"run_dir={run}", *more,
    )  # fmt: skip


# ---- build, check, show


def test_a_table_is_built_calibrated_and_checked(cli, clock, lut):
    result = cli("lut", "build", *settings(lut))
    assert result.code == 0, result.err
    assert "latency = 1.2 x sum + 0.05 ms" in result.out
    assert "on fresh networks: MAPE 0.0 %" in result.out
    assert "granularity.rounding=" in result.out
    assert len(clock) == len(set(clock)), "a signature was measured twice"
    rows = rows_of(lut)
    assert len(rows) == len(clock)
    fingerprint = json.loads(the_table(lut).read_text())["fingerprint"]
    assert fingerprint["device"] == "cpu" and fingerprint["threads"] == 1
    assert {"processor", "torch", "dtype", "layout", "repeats", "date"} <= set(fingerprint)


def test_building_again_measures_nothing_and_a_finer_grid_only_what_is_new(cli, clock, lut):
    cli("lut", "build", *settings(lut, "granularity.rounding=16"))
    first = len(clock)
    assert cli("lut", "build", *settings(lut, "granularity.rounding=16")).out.startswith("0 ")
    assert len(clock) == first
    cli("lut", "build", *settings(lut, "granularity.rounding=8"))
    assert len(clock) == len(set(clock)) > first


def test_a_table_that_searches_refuse_is_calibrated_anew(cli, clock, lut):
    cli("lut", "build", *settings(lut))
    table = Table.load(the_table(lut))
    ((key, calibration),) = table.calibrations.items()
    bad = replace(calibration.held_out, predicted_ms=(1.0, 9.0), measured_ms=(1.0, 1.0))
    assert bad.mape > 1
    table.calibrate(f"{key}@0.5x/abc", calibration)
    table.calibrate(key, replace(calibration, held_out=bad))
    assert len(Table.load(the_table(lut)).calibrations) == 2  # an aim outlives a check
    result = cli("lut", "build", *settings(lut))
    assert result.code == 0 and result.out.startswith("0 ") and "refuse" not in result.out
    assert Table.load(the_table(lut)).calibrations[key].held_out.mape < 0.01


def test_networks_of_a_check_are_never_those_of_the_calibration(cli, clock, lut):
    cli("lut", "build", *settings(lut))
    ((_, calibration),) = Table.load(the_table(lut)).calibrations.items()
    drawn = []
    whole = NetworkTable.measure

    def noting(self, kept, budget_s):
        drawn.append(kept)
        return whole(self, kept, budget_s)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NetworkTable, "measure", noting)
        for seed in (0, 1):
            assert cli("lut", "check", *settings(lut), "--seed", seed).code == 0
    known = set(map(tuple, calibration.kept[1:]))
    for kept in drawn:
        fresh = [tuple(row) for row in kept[1:13].tolist()]
        assert len(set(fresh) & known) < 3  # small networks may meet by chance


def test_building_goes_on_where_it_was_interrupted(cli, clock, lut, monkeypatch):
    whole = CpuMeter.__call__

    def cut(self, wanted, network):
        wanted = list(wanted)
        yield from whole(self, wanted[: len(wanted) // 2], network)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CpuMeter, "__call__", cut)
        assert cli("lut", "build", *settings(lut)).code == 130
    half = len(clock)
    assert 0 < half == len(Table.load(the_table(lut)).entries)
    assert cli("lut", "build", *settings(lut)).code == 0
    assert len(clock) == len(set(clock)) > half


def test_a_check_reports_and_draws(cli, clock, lut, tmp_path):
    cli("lut", "build", *settings(lut))
    out = tmp_path / "report"
    result = cli("lut", "check", *settings(lut), "--out", out, "--seed", "5")
    assert result.code == 0
    for figure in ("MAPE", "Spearman rho", "error of the ratio to dense"):
        assert figure in result.out
    figures = json.loads((out / "latency.json").read_text())
    assert figures["mape"] < 1e-4 and figures["seed"] == 5
    assert len(figures["predicted_ms"]) == 13
    assert (out / "latency.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_timed(
    cli, clock, lut, tmp_path
):
    (tmp_path / "file").write_text("")
    result = cli("lut", "check", *settings(lut), "--out", tmp_path / "file" / "report")
    assert result.code == 2 and "cannot be written: Not a directory" in result.err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    result = cli("lut", "check", *settings(lut), "--out", tmp_path / "run")
    assert result.code == 2 and "run holds a run, whose latency.json would be lost" in result.err
    assert not clock


def test_a_table_says_what_it_holds(cli, clock, lut):
    cli("lut", "build", *settings(lut))
    result = cli("lut", "show", the_table(lut))
    assert result.code == 0
    for word in ("processor", "conv2d", "interquartile range", "latency = 1.2 x sum"):
        assert word in result.out


# ---- searching


def test_a_search_within_a_latency_measures_what_it_asks_for(cli, clock, lut, tmp_path):
    result = search(cli, lut, tmp_path / "run", "latency.batch=2")
    assert result.code == 0, result.err
    assert "latency: 2 examples at once on cpu, one thread" in result.out
    assert re.search(r"latency promised: .*measured: .*[+-]0\.0 %", result.out)
    document = json.loads((tmp_path / "run" / "result.json").read_text())
    promise = document["latency_promise"]
    assert promise["predicted_ms"] <= promise["limit_ms"]
    assert promise["measured_ratio"] == pytest.approx(promise["predicted_ratio"], rel=1e-3)
    assert promise["predicted_ratio"] <= 0.6
    assert (tmp_path / "run" / "latency.png").exists()
    assert len(clock) == len(set(clock))


def test_tables_that_err_too_much_are_refused_unless_forced(cli, clock, lut, tmp_path, monkeypatch):
    time = NetworkTable.time
    rng = np.random.default_rng(0)

    def erratic(self, kept, budget_s):
        return [t * factor for t, factor in zip(
            time(self, kept, budget_s), rng.uniform(0.4, 1.6, len(kept)), strict=True)]  # fmt: skip

    with monkeypatch.context() as patch:
        patch.setattr(NetworkTable, "time", erratic)
        refused = search(cli, lut, tmp_path / "a")
        assert refused.code == 2
        assert "on fresh networks, more than the 10 %" in refused.err
        assert "latency.force=true" in refused.err
        assert not (tmp_path / "a").exists()
        assert search(cli, lut, tmp_path / "b", "latency.force=true").code == 0


@pytest.fixture
def worse_when_filled(clock, monkeypatch):
    """Networks between 30 and 90 % of dense take a tenth longer than their operators say."""
    time = NetworkTable.time

    def biased(self, kept, budget_s):
        # Calibration draws 25 networks; what fills a budget is timed six or one at a time.
        few = len(kept) < 10
        times = time(self, kept, budget_s)
        return [t * (1.1 if few and 0.3 < t / times[0] < 0.9 else 1.0) for t in times]

    monkeypatch.setattr(NetworkTable, "time", biased)


def test_predictions_are_corrected_for_networks_that_fill_the_budget(
    cli, worse_when_filled, lut, tmp_path
):
    result = search(cli, lut, tmp_path / "run", "latency.max_mape=0.2")
    assert result.code == 0, result.err
    assert re.search(r"latency near the budget: predictions corrected by \+\d", result.err)
    promise = json.loads((tmp_path / "run" / "result.json").read_text())["latency_promise"]
    assert promise["measured_ratio"] == pytest.approx(promise["predicted_ratio"], rel=0.03)
    assert promise["measured_ratio"] <= 0.6 * 1.02

    again = search(cli, lut, tmp_path / "again", "latency.max_mape=0.2")
    assert "to aim at it" in result.err
    assert "to aim at it" not in again.err  # what was measured is used again

    plain = ("latency.max_mape=0.2", "latency.aim=0", "latency.land=false")
    search(cli, lut, tmp_path / "plain", *plain)
    promise = json.loads((tmp_path / "plain" / "result.json").read_text())["latency_promise"]
    assert promise["measured_ratio"] == pytest.approx(1.1 * promise["predicted_ratio"], rel=0.03)


def test_what_was_found_is_timed_and_brought_onto_the_budget(cli, worse_when_filled, lut, tmp_path):
    found = {}
    for land in ("false", "true"):
        run = tmp_path / land
        settings = ("latency.max_mape=0.2", "latency.aim=0", f"latency.land={land}")
        result = search(cli, lut, run, *settings)
        assert result.code == 0, result.err
        found[land] = json.loads((run / "result.json").read_text())
    over, landed = (found[land]["latency_promise"]["measured_ratio"] for land in ("false", "true"))
    assert over > 0.62 and landed <= 0.6 * 1.01
    assert re.search(r"latency of found: timed, it takes 1\d\d\.\d % .*; brought to", result.err)
    assert found["false"]["trials"] == found["true"]["trials"]  # it is no further trial of a search
    promise = found["true"]["latency_promise"]
    assert promise["predicted_ratio"] == pytest.approx(promise["measured_ratio"], rel=1e-3)


def test_a_cut_run_lands_on_the_same_network_without_timing_again(
    cli, worse_when_filled, lut, tmp_path, monkeypatch
):
    run, settings = tmp_path / "run", ("latency.max_mape=0.2", "latency.aim=0")
    search(cli, lut, run, *settings)
    policy = (run / "policy.json").read_bytes()
    (run / "result.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(NetworkTable, "beside_dense", None)
        assert search(cli, lut, run, *settings).code == 0
    assert (run / "policy.json").read_bytes() == policy

    (run / "result.json").unlink()
    (run / "landing.json").write_text("{")  # whatever happened to it: it is timed again
    assert search(cli, lut, run, *settings).code == 0
    assert (run / "policy.json").read_bytes() == policy


def test_a_line_by_which_no_network_meets_the_budget_ends_no_search(
    cli, clock, lut, tmp_path, monkeypatch
):
    monkeypatch.setattr(NetworkTable, "beside_dense", lambda self, kept, s: 0.97 * self.dense_ms)
    result = search(cli, lut, tmp_path / "run", "budget.latency_ms=0.3")
    assert result.code == 0, result.err
    assert (tmp_path / "run" / "result.json").exists()


# ---- bad input: one line each, exit code 2


def one_line(result, *says):
    assert result.code == 2, (result.out, result.err)
    (line,) = [line for line in result.err.splitlines() if line.startswith("prunepilot: error")]
    for text in says:
        assert text in line


def test_a_table_of_another_device_is_refused_unless_forced(cli, clock, lut, tmp_path):
    cli("lut", "build", *settings(lut))
    path = the_table(lut)
    document = json.loads(path.read_text())
    here = document["fingerprint"]
    for field, value in {"processor": "Another 9000", "dtype": "bfloat16", "torch": "1.0"}.items():
        path.write_text(json.dumps({**document, "fingerprint": {**here, field: value}}))
        result = cli("lut", "check", *settings(path))
        one_line(result, "of another device", field, "latency.force=true")
    one_line(search(cli, path, tmp_path / "a"), "of another device")
    assert search(cli, path, tmp_path / "b", "latency.force=true").code == 0


def test_missing_operators_are_named_where_measuring_is_off(cli, clock, lut, tmp_path):
    cli("lut", "build", *settings(lut, "granularity.rounding=32"))
    result = search(cli, lut, tmp_path / "a", "latency.measure=false", "granularity.rounding=4")
    one_line(result, "lacks", "conv2d", "lut build")


def test_no_table_where_measuring_is_off(cli, clock, lut, tmp_path):
    result = search(cli, lut, tmp_path / "a", "latency.measure=false")
    one_line(result, "there is no latency table of this device", "lut build")


@pytest.mark.parametrize("damage", ["truncated", "changed", "torn"])
def test_damaged_tables_are_refused(cli, clock, lut, damage):
    cli("lut", "build", *settings(lut))
    path = the_table(lut)
    rows = path.with_suffix(".csv")
    if damage == "truncated":
        rows.write_bytes(rows.read_bytes()[:-20])
    elif damage == "changed":
        rows.write_bytes(rows.read_bytes().replace(b"conv2d", b"conv3d", 1))
    else:
        path.write_text(path.read_text()[:50])
    result = cli("lut", "check", *settings(lut))
    one_line(result, "damaged" if damage != "truncated" else damage)


def test_a_budget_below_what_no_pruning_changes_is_refused(cli, clock, lut, tmp_path):
    result = search(cli, lut, tmp_path / "a", "budget.latency_ms={absolute: 0.01}")
    one_line(result, "below the", "of what no pruning changes")


def test_a_budget_below_the_smallest_network_is_refused(cli, clock, lut, tmp_path):
    result = search(cli, lut, tmp_path / "a", "budget.latency_ms={fraction: 0.02}")
    one_line(result, "budget cannot be met", "least reachable")


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("latency.table=nowhere.json", "there is no latency table"),
        ("latency.table=3", "latency.table must be"),
        ("latency.batch=0", "latency.batch must be"),
        ("latency.repeats=1", "latency.repeats must be"),
        ("latency.networks=1", "latency.networks must be"),
        ("latency.force=maybe", "latency.force must be"),
        ("latency.wait_s=-1", "latency.wait_s must be"),
        ("latency.max_mape=abc", "latency.max_mape must be a number >= 0, got 'abc'"),
        ("latency.max_mape=null", "latency.max_mape must be a number >= 0, got None"),
        ("granularity.min_keep=x", "min_keep must be in [0, 1], got 'x'"),
    ],
)
def test_settings_that_make_no_sense_are_said(cli, clock, lut, setting, says):
    one_line(cli("lut", "build", *settings(lut, setting)), says)
    assert not clock, "something was measured first"


def test_no_error_to_compare_with_is_refused_before_anything_is_timed(cli, clock, lut, tmp_path):
    bad, says = "latency.max_mape=abc", "latency.max_mape must be a number >= 0, got 'abc'"
    one_line(cli("lut", "check", *settings(lut, bad)), says)
    one_line(search(cli, lut, tmp_path / "run", bad), says)
    one_line(search(cli, lut, tmp_path / "run", bad, "latency.force=true"), says)
    assert not clock and not list(lut.glob("*")) and not (tmp_path / "run").exists()


def test_a_busy_machine_is_refused(cli, clock, lut, tmp_path, monkeypatch):
    from automl.executors import quiet

    monkeypatch.setattr(quiet, "busy_cores", lambda stat: 1.5)
    monkeypatch.setattr("automl.executors.latency_table.require_quiet", quiet.require_quiet)
    one_line(cli("lut", "build", *settings(lut)), "not quiet", "1.5 cores", "latency.wait_s")
    assert not list(lut.glob("*.json"))
    assert cli("lut", "build", *settings(lut, "latency.allow_busy=true")).code == 0


def test_operators_that_waited_for_the_cpu_are_not_written(cli, clock, lut, monkeypatch):
    def disturbed(self, wanted, network):
        yield [(signature, Entry(12, 100.0, 1.0, 50.0)) for signature in wanted]

    monkeypatch.setattr(CpuMeter, "__call__", disturbed)
    one_line(cli("lut", "build", *settings(lut)), "not quiet", "nothing of that was written")
    assert not list(lut.glob("*.json"))


# ---- importing


def test_a_pickle_with_a_payload_is_refused_and_never_run(cli, tmp_path):
    mark = tmp_path / "pwned"

    class Payload:
        def __reduce__(self):
            return open, (str(mark), "w")

    source = tmp_path / "lut.pkl"
    source.write_bytes(pickle.dumps(Payload()))
    result = cli("lut", "import", source, "--device", "phone", "--out", tmp_path / "out.json")
    one_line(result, "is refused", "open")
    assert not mark.exists() and not (tmp_path / "out.json").exists()


def test_a_table_of_a_phone_serves_a_search_when_forced(cli, clock, lut, tmp_path):
    cli("lut", "build", *settings(lut))
    rows = rows_of(lut)
    layers = [row for row in rows if row["kind"] in ("conv2d", "linear")]
    columns = [
        "kind", "in_channels", "out_channels", "kernel", "stride", "groups", "height", "width",
        "median_us",
    ]  # fmt: skip
    source = tmp_path / "phone.csv"
    with source.open("w") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(layers)
    imported = tmp_path / "imported.json"
    assert cli("lut", "import", source, "--device", "phone", "--out", imported).code == 0
    one_line(cli("lut", "check", *settings(imported)), "of another device")
    result = search(cli, imported, tmp_path / "b", "latency.force=true")
    assert result.code == 0, result.err
    assert "sums of operators are used as they are" in result.err
    (said,) = [line for line in result.err.splitlines() if "count as nothing" in line]
    assert "relu" in said and "adaptive_avg_pool2d" in said and "conv2d" not in said
    (promise,) = [line for line in result.out.splitlines() if "latency promised" in line]
    assert re.search(
        r"promised of phone: .* ms, .* % of dense; on this device, .* % of dense$", promise
    )
    found = json.loads((tmp_path / "b" / "result.json").read_text())
    assert found["latency_promise"]["table_of"] == "phone"


def test_a_table_of_another_release_is_named_by_what_it_is_of(cli, clock, lut, tmp_path):
    cli("lut", "build", *settings(lut))
    path = the_table(lut)
    document = json.loads(path.read_text())
    document["fingerprint"]["torch"] = "1.0"
    path.write_text(json.dumps(document))
    result = search(cli, path, tmp_path / "run", "latency.force=true")
    assert re.search(r"latency promised of cpu-.*-torch1\.0: ", result.out), result.out
    assert "count as nothing" not in result.err  # it knows all operators


def test_unknown_actions_are_said(cli):
    assert cli("lut", "bulid").code == 2
    assert cli("lut").code == 2


def test_zeros_inside_layers_have_latency_by_the_format_that_runs_them(
    cli, clock, lut, tmp_path, monkeypatch
):
    def faster(signature):
        return made_up_us(signature) * (1 if signature.format == "dense" else signature.density)

    def meter(self, wanted, network):
        found = [(s, Entry(12, round(faster(s), 3), 0.5, 0.0)) for s in wanted]
        clock.extend(signature for signature, _ in found)
        yield found

    def time(self, kept, budget_s):
        return [1.2 * float(self.total(np.asarray(row))) + 0.05 for row in kept]

    monkeypatch.setattr(CpuMeter, "__call__", meter)
    monkeypatch.setattr(NetworkTable, "time", time)
    run = tmp_path / "run"
    result = search(cli, lut, run, "granularity=unstructured")
    assert result.code == 0, result.err
    found = json.loads((run / "result.json").read_text())
    formats = found["latency_promise"]["formats"]
    assert {how["format"] for how in formats.values()} & {"conv", "pell", "csc", "bitmap"}
    assert "weights by format: " in result.out
    assert found["rows"][-1]["costs"]["latency_ms"] <= found["limits"]["latency_ms"]
    assert {"conv", "dense"} <= {row["format"] for row in rows_of(lut)}


@pytest.mark.parametrize("grain", ["channel", "unstructured"])
def test_networks_on_point_clouds_have_no_table(cli, tmp_path, grain):
    settings = ["model=shapes_tiny", f"granularity={grain}", f"latency.table={tmp_path / 'lut'}"]
    done = cli("lut", "build", *settings, "latency.allow_busy=true")
    assert done.code == 2 and len(done.err.splitlines()) == 1
    assert "latency tables cannot hold convolutions on point clouds" in done.err
