"""Reads damaged files of every kind that may come from outside, thousands of each.

    python scripts/fuzz.py --inputs 20000 --seed 0
    python scripts/fuzz.py --kinds "policy, JSON" --only 137      # one input again, with its error

Every input is a whole sample with something changed (``fuzz_inputs``). What reads it must take it
or refuse it with ``InputError``, and nothing else. Each of these is a fault: any other exception, a
crash, more than 5 CPU seconds, more than 2 GiB of address space, an import of the canary module, a
process started, a connection opened, a file written, moved or removed outside of the work folder.

Inputs are read in a forked process, whose death is a fault of the input it was reading. Prints a
Markdown table and every fault; exits with 1 if there was any.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fuzz_inputs import CANARY, mutate
from fuzz_kinds import KINDS, Kind

from automl.executors import kernels
from automl.types import InputError

_SECONDS = 5
_ADDRESS_SPACE = 2 << 30
#: Where files are fastest; None: wherever temporary files go.
_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
_COMPILED = f"{os.path.realpath(Path(kernels.__file__).parent)}/__pycache__/"
#: Inputs that one forked process reads.
_CHUNK = 1000
_RUNS = frozenset({
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty",
    "subprocess.Popen", "socket.connect", "socket.bind", "pty.spawn", "ctypes.dlopen",
})  # fmt: skip
_CHANGES = frozenset({
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod",
    "shutil.rmtree", "os.truncate",
})  # fmt: skip


class Ran(BaseException):
    """An input made something run or change that it must not."""


@dataclass
class Tally:
    """What became of the inputs of one kind.

    Attributes:
        accepted: How many were read.
        refused: How many ended with ``InputError``.
        slowest: CPU seconds of the slowest.
        memory: Bytes by which the process grew at most.
        faults: (input, what was wrong).
    """

    accepted: int = 0
    refused: int = 0
    slowest: float = 0.0
    memory: int = 0
    faults: list[tuple[int, str]] = field(default_factory=list)


class Watch:
    """An audit hook: raises ``Ran`` while an input is read and does what it must not."""

    def __init__(self) -> None:
        """Watches nothing yet; hooks stay for the life of the process."""
        self.folder: str | None = None
        sys.addaudithook(self._look)

    def _look(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in _RUNS or (event == "import" and args[0] == CANARY):
            raise Ran(f"{event} {args[:1]}")
        if event in _CHANGES or (event == "open" and _writes(args)):
            path = args[0]
            if isinstance(path, str | bytes | os.PathLike) and not self._is_inside(path):
                raise Ran(f"{event} {path!r}")

    def _is_inside(self, path: Any) -> bool:
        real = os.path.realpath(os.fsdecode(path))
        inside = real == "/dev/null" or f"{real}/".startswith(f"{self.folder}/")
        # Another geometry may be the first to need a kernel, and what is compiled is kept there.
        return inside or f"{real}/".startswith(_COMPILED)


def _writes(args: tuple[Any, ...]) -> bool:
    _, mode, flags = args
    return bool(set(mode or "") & set("wax+")) or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR))


def damage(kind: Kind, whole: Path, folder: Path, seed: str) -> None:
    """Replaces one file of ``folder`` by a damaged copy of the one in ``whole``."""
    rng = random.Random(seed)
    name = rng.choice(list(kind.files))
    (folder / name).write_bytes(mutate((whole / name).read_bytes(), kind.files[name], rng))
    if rng.random() < 0.8:
        try:
            kind.seal(folder)
        except (ValueError, RecursionError):  # the file with the seal is damaged itself
            return


def read_one(kind: Kind, folder: Path, watch: Watch) -> str:
    """``accepted``, ``refused``, or what was wrong."""
    watch.folder = os.path.realpath(folder)
    try:
        with warnings.catch_warnings():  # that a torn line was dropped, say
            warnings.simplefilter("ignore")
            kind.read(folder)
        return "accepted"
    except InputError as error:
        return "refused" if str(error).strip() else "an empty message"
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        at = next((f for f in reversed(frames) if "/automl/" in f.filename), frames[-1])
        text = " ".join(str(error).split())[:150]
        return f"{type(error).__name__}: {text} ({Path(at.filename).name}:{at.lineno})"
    finally:
        watch.folder = None


def read_all(
    kind: Kind, whole: Path, numbers: range, seed: int, watch: Watch
) -> Iterator[tuple[int, str, float, int]]:
    """(number, what became of it, CPU seconds, bytes grown) of every input; in this process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory(dir=_MEMORY) as temporary:
        folder = Path(temporary)
        shutil.copytree(whole, folder, dirs_exist_ok=True)
        for number in numbers:
            damage(kind, whole, folder, f"{seed}-{number}")
            signal.setitimer(signal.ITIMER_PROF, _SECONDS)
            started = time.process_time()
            outcome = read_one(kind, folder, watch)
            seconds = time.process_time() - started
            signal.setitimer(signal.ITIMER_PROF, 0)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            yield number, outcome, seconds, grown << 10
            for name in kind.files:
                shutil.copyfile(whole / name, folder / name)


def _limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _ADDRESS_SPACE,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _forked(kind: Kind, whole: Path, numbers: range, seed: int, watch: Watch) -> Iterator[Any]:
    """What ``read_all`` gives, from a forked process; the last row tells how it died, if so."""
    here, there = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(here)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        faulthandler.disable()  # crashes are expected, and counted
        _limit_memory()
        with os.fdopen(there, "w") as out:
            for row in read_all(kind, whole, numbers, seed, watch):
                out.write(json.dumps(row) + "\n")
                out.flush()
        os._exit(0)
    os.close(there)
    following = numbers.start
    with os.fdopen(here) as rows:
        for line in rows:
            row = json.loads(line)
            following = row[0] + 1
            yield row
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code or following < numbers.stop:
        how = f"more than {_SECONDS} s" if code == -signal.SIGPROF else f"the process died ({code})"
        yield following, how, 0.0, 0


def fuzz(name: str, inputs: int, seed: int, watch: Watch) -> Tally:
    """Reads so many damaged files of a kind."""
    kind, tally = KINDS[name], Tally()
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary)
        kind.make(whole)
        kind.read(whole)  # also loads whatever is loaded on first use
        following = 0
        while following < inputs:
            stop = min(following + _CHUNK, inputs)
            for number, outcome, seconds, grown in _forked(
                kind, whole, range(following, stop), seed, watch
            ):
                _count(tally, number, outcome, seconds, grown)
                following = number + 1
    return tally


def _count(tally: Tally, number: int, outcome: str, seconds: float, grown: int) -> None:
    tally.slowest, tally.memory = max(tally.slowest, seconds), max(tally.memory, grown)
    if outcome == "accepted":
        tally.accepted += 1
    elif outcome == "refused":
        tally.refused += 1
    else:
        tally.faults.append((number, outcome))


def _alike(faults: Sequence[tuple[int, str]]) -> dict[str, list[int]]:
    """Inputs by what was wrong; of faults from one line, the first one's words."""
    found: dict[str, tuple[str, list[int]]] = {}
    for number, fault in faults:
        key = f"{fault.partition(':')[0]} {fault.rpartition('(')[2]}"
        found.setdefault(key, (fault, []))[1].append(number)
    return dict(found.values())


def show(name: str, number: int, seed: int, watch: Watch) -> str:
    """Reads one input in this process, traceback and all."""
    kind = KINDS[name]
    with tempfile.TemporaryDirectory() as temporary, tempfile.TemporaryDirectory() as whole:
        kind.make(Path(whole))
        shutil.copytree(whole, temporary, dirs_exist_ok=True)
        damage(kind, Path(whole), Path(temporary), f"{seed}-{number}")
        watch.folder = os.path.realpath(temporary)
        try:
            kind.read(Path(temporary))
        except InputError as error:
            return f"refused: {error}"
        except BaseException:
            return traceback.format_exc()
        finally:
            watch.folder = None
    return "accepted"


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzzes and prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=20_000, help="of each kind (default: 20000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--only", type=int, help="read this input alone and show its traceback")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sys.setrecursionlimit(1000)
    watch = Watch()
    if asked.only is not None:
        print(show(asked.kinds[0], asked.only, asked.seed, watch))
        return 0
    print("| kind | inputs | accepted | refused | faults | slowest, CPU s | grown by at most, MB |")
    print("|---|---|---|---|---|---|---|")
    wrong = 0
    for name in asked.kinds:
        tally = fuzz(name, asked.inputs, asked.seed, watch)
        wrong += len(tally.faults)
        cells = [name, asked.inputs, tally.accepted, tally.refused, len(tally.faults),
                 f"{tally.slowest:.2f}", f"{tally.memory / 1e6:.0f}"]  # fmt: skip
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
        for where, numbers in _alike(tally.faults).items():
            print(f"{name}, {len(numbers)} inputs such as {numbers[0]}: {where}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
