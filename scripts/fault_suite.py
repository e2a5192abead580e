"""Kills searches at random moments and sees to it that nothing finished is lost.

    python scripts/fault_suite.py --kills 200 --seed 0

Every search runs once undisturbed. Then it is started again and again in fresh folders, and killed
with SIGKILL, SIGINT or SIGTERM at moments drawn at random, up to ``--per-folder`` times a folder,
until it is let run to its end. With ``engine=process``, four of five searches lose workers instead,
one after the other, which they have to survive without being started again. Checked with real
processes, real signals and real files:

- every line that was in a journal before a kill is in it after it, and after the run has gone on;
- no trial is scored twice;
- the policy, the pruned weights and all scores are those of the undisturbed run, byte for byte;
- no half-written file is left, and whoever is told to stop says so in one line, without traceback.

A process is forked from one that has everything imported, so that a run costs no more than itself.
Prints a Markdown table; exits with 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from automl.cli import main as command

#: Files that have to come out the same, byte for byte.
RESULTS = ("policy.json", "policy_uniform.json", "model.safetensors")

SETTINGS = (
    "model=digits", "data=digits", "budget.macs=0.5", "trials=10", "seed=3", "threads=1",
    "device=cpu", "repair.calibration_images=32", "repair.refine.steps=5", "scoring.images=100",
    "scoring.finalists=2",
    "latency_budget_s=0", "trace_deadline_s=600",  # on a machine that other work keeps busy
)  # fmt: skip

#: Workers; a trial may lose as many of them as one folder sees killed.
_PROCESSES = ("engine=process", "engine.n=2", "engine.retries=4")

#: What is searched with; every strategy keeps its state in another way.
CASES = {
    "random": ("strategy=random",),
    "netadapt": ("strategy=netadapt",),
    "amc": ("strategy=amc",),
    "cmaes": ("strategy=cmaes",),
    "tpe": ("strategy=tpe",),
    "sensitivity": ("strategy=sensitivity",),
    "finetuned": ("strategy=random", "finetune=short", "finetune.epochs=2"),
    "workers": ("strategy=random", *_PROCESSES),
    "workers-netadapt": ("strategy=netadapt", *_PROCESSES),
    "workers-amc": ("strategy=amc", "strategy.episodes_per_round=4", *_PROCESSES),
    "workers-cmaes": ("strategy=cmaes", *_PROCESSES),
    "workers-sensitivity": ("strategy=sensitivity", *_PROCESSES),
}
#: Cases whose workers are killed, too: those that have some.
WITH_WORKERS = frozenset(name for name in CASES if name.startswith("workers"))
#: How often a worker is killed rather than the search, where there are workers.
_WORKER_SHARE = 0.8
#: What a tally calls the kill of a worker.
WORKER = "worker"

SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
#: What a process that was told to stop may end with: its own code, the signal, or 0 if it was done.
_CODES = {
    signal.SIGKILL: {-signal.SIGKILL, 0},
    signal.SIGINT: {130, 0},
    signal.SIGTERM: {143, -signal.SIGTERM, 0},
}


class Lost(Exception):
    """Something that was promised was not kept."""


@dataclass
class Tally:
    """What happened to one case.

    Attributes:
        kills: By signal; ``worker`` where a worker was killed and not the search itself.
        moments: Kills by where the run was: before its folder, in its trials, behind them.
        runs: Folders that ran to their end.
        lines: Journal lines that were there at a kill and had to survive.
        faults: What went wrong, a line each.
    """

    kills: Counter[str] = field(default_factory=Counter)
    moments: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    lines: int = 0
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reference:
    """The undisturbed run: its folder, and how long a warm process takes for it."""

    folder: Path
    seconds: float


def start(arguments: Sequence[str], log: Path) -> int:
    """Runs the command in a forked process, with its output in a file; returns its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        code = command(list(arguments))
        sys.stdout.flush()
        sys.stderr.flush()
    except KeyboardInterrupt:  # before the command has begun, or after it has ended
        code = 130
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def wait(pid: int, seconds: float | None = None) -> int | None:
    """The exit code (minus the signal's number), or None if it is still running by then."""
    end = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, 0 if end is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if end is not None and time.monotonic() >= end:
            return None
        time.sleep(0.002)


def journals(folder: Path) -> dict[str, list[bytes]]:
    """The whole lines of every journal."""
    return {
        file.name: [line + b"\n" for line in file.read_bytes().split(b"\n")[:-1]]
        for file in sorted(folder.glob("*.jsonl"))
    }


def scores(folder: Path) -> dict[str, list[tuple[str, float]]]:
    """Policy and score of all trials in order, by journal.

    Lines are in the order in which trials finished, which is another with several workers.
    """
    found = {}
    for name, lines in journals(folder).items():
        rows = sorted(map(json.loads, lines), key=lambda row: int(row["index"]))
        found[name] = [(row["policy"], row["score"]) for row in rows]
    return found


def require_kept(before: dict[str, list[bytes]], folder: Path) -> None:
    """Raises Lost unless every line is still where it was."""
    after = journals(folder)
    for name, lines in before.items():
        if after.get(name, [])[: len(lines)] != lines:
            raise Lost(f"{name} had {len(lines)} lines, of which some are gone or changed")


def require_same(folder: Path, reference: Path) -> None:
    """Raises Lost unless a finished run is the undisturbed one."""
    for name in RESULTS:
        if (folder / name).read_bytes() != (reference / name).read_bytes():
            raise Lost(f"{name} differs from the undisturbed run's")
    if scores(folder) != scores(reference):
        raise Lost("its trials differ from the undisturbed run's")
    for name, lines in journals(folder).items():
        keys = Counter(json.loads(line)["key"] for line in lines)
        twice = [key for key, times in keys.items() if times > 1]
        if twice:
            raise Lost(f"{name}: {len(twice)} trials were scored twice")
    partial = [file.name for file in folder.iterdir() if file.name.endswith(".partial")]
    if partial:
        raise Lost(f"{partial[0]} was left behind")


def moment(folder: Path) -> str:
    """How far a run has come."""
    if not (folder / "trials.jsonl").is_file():
        return "before trials"
    return "after trials" if (folder / "trials.parquet").is_file() else "in trials"


def reference(name: str, root: Path) -> Reference:
    """Runs a case twice undisturbed: to warm up, and to time it."""
    warm, timed = root / f"{name}-0", root / f"{name}-1"
    log = root / f"{name}.log"
    code = _in_this_process([*_search(name), f"run_dir={warm}"], log)
    started = time.monotonic()
    again = wait(start([*_search(name), f"run_dir={timed}"], log))
    if (code, again) != (0, 0):
        raise SystemExit(f"the undisturbed run of {name} failed:\n{log.read_text()}")
    require_same(timed, warm)
    return Reference(timed, time.monotonic() - started)


def _in_this_process(arguments: Sequence[str], log: Path) -> int:
    """Runs the command here, so that what it imports and compiles is there for all forks."""
    with open(log, "a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        return command(list(arguments))


def _search(name: str) -> list[str]:
    return ["search", *SETTINGS, *CASES[name]]


def one_folder(
    name: str, known: Reference, folder: Path, kills: int, rng: random.Random, tally: Tally
) -> None:
    """Starts a search, kills it so many times, and lets it run to its end.

    Raises:
        Lost: A promise was broken; the message says which.
    """
    log = folder.with_suffix(".log")
    for _ in range(kills):
        if (folder / "result.json").is_file():
            break
        number, after = rng.choice(SIGNALS), rng.uniform(0, known.seconds)
        if name in WITH_WORKERS and rng.random() < _WORKER_SHARE:
            _workers_killed(name, known, folder, kills, rng, tally)
        elif not _killed(name, folder, log, after, number, tally):
            break
    code = wait(start(_how_to_go_on(name, folder, rng), log))
    if code != 0:
        raise Lost(f"going on ended with {code}: {_last_line(log)}")
    require_same(folder, known.folder)
    tally.runs += 1


def _killed(
    name: str, folder: Path, log: Path, after: float, number: signal.Signals, tally: Tally
) -> bool:
    """Runs on and kills; False if the run was done before."""
    before = journals(folder)
    pid = start(_how_to_go_on(name, folder, random.Random(after)), log)
    if wait(pid, after) is not None:
        return False
    seen = journals(folder)
    os.kill(pid, number)
    code = wait(pid, 60)
    if code is None:
        os.kill(pid, signal.SIGKILL)
        wait(pid)
        raise Lost(f"it was still running a minute after {number.name}")
    tally.kills[number.name] += 1
    tally.moments[moment(folder)] += 1
    tally.lines += sum(map(len, seen.values()))
    require_kept(before, folder)
    require_kept(seen, folder)
    if code not in _CODES[number]:
        raise Lost(f"{number.name} ended with {code}: {_last_line(log)}")
    if "Traceback" in log.read_text():
        raise Lost(f"{number.name} led to a traceback: {_last_line(log)}")
    return True


def _workers_killed(
    name: str, known: Reference, folder: Path, kills: int, rng: random.Random, tally: Tally
) -> None:
    """Runs on, kills up to so many workers, one by one, and sees that the search ends well."""
    log, before = folder.with_suffix(".log"), journals(folder)
    pid = start(_how_to_go_on(name, folder, rng), log)
    code = None
    for _ in range(kills):
        code = wait(pid, rng.uniform(0, known.seconds))
        while code is None and not (workers := _workers(pid)):
            code = wait(pid, 0.05)
        if code is not None:
            break
        seen = journals(folder)
        with contextlib.suppress(ProcessLookupError):  # it may have ended since
            os.kill(rng.choice(workers), signal.SIGKILL)
            tally.kills[WORKER] += 1
            tally.moments[moment(folder)] += 1
            tally.lines += sum(map(len, seen.values()))
        require_kept(before, folder)
        before = seen
    code = wait(pid) if code is None else code
    require_kept(before, folder)
    if code != 0:
        raise Lost(f"killed workers ended the search with {code}: {_last_line(log)}")


def _workers(pid: int) -> list[int]:
    """The worker processes of a search."""
    found = []
    with contextlib.suppress(OSError):  # of processes that end meanwhile
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


def _how_to_go_on(name: str, folder: Path, rng: random.Random) -> list[str]:
    """``resume`` where there is a run already, or else, as well as now and then, ``search``."""
    if (folder / "config.yaml").is_file() and rng.random() < 0.7:
        return ["resume", str(folder)]
    return [*_search(name), f"run_dir={folder}"]


def _last_line(log: Path) -> str:
    lines = log.read_text().strip().splitlines() if log.is_file() else []
    return lines[-1] if lines else ""


def suite(
    names: Sequence[str], kills: int, per_folder: int, seed: int, root: Path
) -> dict[str, Tally]:
    """Kills until the sum of all cases is reached, in turn."""
    rng = random.Random(seed)
    known = {name: reference(name, root) for name in names}
    tallies = {name: Tally() for name in names}
    number = 0
    while (done := sum(sum(tally.kills.values()) for tally in tallies.values())) < kills:
        name = names[number % len(names)]
        folder = root / f"run-{number}"
        try:
            most = min(per_folder, kills - done)
            one_folder(name, known[name], folder, most, rng, tallies[name])
        except Lost as lost:
            tallies[name].faults.append(f"{name}, folder {number}: {lost}")
            print(tallies[name].faults[-1], file=sys.stderr, flush=True)
        number += 1
        print(f"{done}/{kills} kills, {number} folders", file=sys.stderr, flush=True)
    return tallies


def table(tallies: dict[str, Tally]) -> str:
    """The outcome as Markdown."""
    lines = [
        "| search | SIGKILL | SIGINT | SIGTERM | worker | before, in, after trials "
        "| journal lines at kills | runs ended | wrong |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, tally in tallies.items():
        kills = [str(tally.kills[number.name]) for number in SIGNALS]
        kills.append(str(tally.kills[WORKER]))
        when = [str(tally.moments[at]) for at in ("before trials", "in trials", "after trials")]
        cells = [name, *kills, ", ".join(when), tally.lines, tally.runs, len(tally.faults)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the suite and prints its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="in all (default: 200)")
    parser.add_argument("--per-folder", type=int, default=4, help="at most (default: 4)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--keep", type=Path, help="folder for runs and logs; default: temporary")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        root = asked.keep or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        tallies = suite(asked.cases, asked.kills, asked.per_folder, asked.seed, root)
    print(table(tallies))
    kills = sum(sum(tally.kills.values()) for tally in tallies.values())
    faults = [fault for tally in tallies.values() for fault in tally.faults]
    print(
        f"\nseed {asked.seed}: {kills} kills, {sum(t.runs for t in tallies.values())} runs ended "
        f"with the undisturbed bytes, {len(faults)} went wrong ({time.monotonic() - started:.0f} s)"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
