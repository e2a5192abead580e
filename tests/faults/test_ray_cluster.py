"""A search on a Ray cluster of two machines, one of which is lost; both are this one."""

import json
import os
import subprocess
import sys
import time

import pytest

from automl.journal import Journal
from automl.runs import JOURNAL, POLICY

pytest.importorskip("ray")

SEARCH = (
    "search", "model=digits", "data=digits", "strategy=random", "budget.macs=0.5", "trials=60",
    "seed=3", "threads=1", "device=cpu", "repair.calibration_images=256", "repair.refine=null",
    "latency_budget_s=0",
)  # fmt: skip


def start(*settings):
    return subprocess.Popen(
        [sys.executable, "-m", "automl.cli", *settings],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd(), "RAY_DEDUP_LOGS": "0"},
    )  # fmt: skip


def finish(process, seconds=300):
    out, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, out[-2000:]
    return out


@pytest.fixture
def cluster():
    from ray.cluster_utils import Cluster

    # A raylet counts as dead after a second without a sign of it, not after half a minute.
    quick = {"health_check_period_ms": 300, "health_check_failure_threshold": 3}
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": quick},
    )
    yield made
    made.shutdown()


def rows(run):
    """What was scored; which trial came first to be done is the only thing that may differ."""
    return {row["key"]: (row["index"], row["score"]) for row in Journal.read(run / JOURNAL)}


def wait_for_rows(run, count, process, seconds=240):
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if (run / JOURNAL).is_file():
            done = (run / JOURNAL).read_text().count("\n")
            if done >= count:
                return done
        time.sleep(0.05)
    pytest.fail(f"no {count} trials in time: {process.communicate()[0][-2000:]}")


def test_a_machine_is_lost_and_nothing_else_is(cluster, tmp_path):
    serial, lost = tmp_path / "serial", tmp_path / "lost"
    finish(start(*SEARCH, f"run_dir={serial}"))
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    run = start(*SEARCH, "engine=ray", f"engine.address={cluster.address}", f"run_dir={lost}")
    before = wait_for_rows(lost, 10, run)
    kept = (lost / JOURNAL).read_text().splitlines()[:before]
    cluster.remove_node(second, allow_graceful=False)  # SIGKILL to all of its processes
    assert run.poll() is None  # it was in the middle of the search
    finish(run)
    assert (lost / JOURNAL).read_text().splitlines()[:before] == kept
    assert (lost / POLICY).read_bytes() == (serial / POLICY).read_bytes()
    assert rows(lost) == rows(serial)
    assert json.loads((lost / "result.json").read_text())["failed"] == 0
