"""What a result depends on beside its settings: versions, processor, devices."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from automl._version import __version__

PACKAGES = (
    "torch", "torchvision", "timm", "numpy", "pandas", "pyarrow", "scikit-learn", "scipy",
    "safetensors", "hydra-core", "omegaconf", "pillow", "rich",
)  # fmt: skip

#: Instruction sets that decide which kernels run, as /proc/cpuinfo spells them.
_CPU_FEATURES = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
    "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8", "asimd", "asimddp", "bf16", "i8mm", "sve",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Versions, processor, threads, devices and the revision of a checkout.

    Returns:
        Plain data for environment.json; neither paths nor the host's name.
    """
    import torch

    return {
        "prunepilot": __version__,
        "revision": _revision(),
        "python": platform.python_version(),
        "packages": versions(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cpu_features": cpu_features(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda_devices": cuda_devices(),
    }


def versions() -> dict[str, str | None]:
    """Package -> installed version, None where it is not installed."""
    return {name: _version(name) for name in PACKAGES}


def cpu_name() -> str:
    """The processor's model, as far as the system tells."""
    info = _cpuinfo()
    if name := info.get("model name"):
        return name
    # ARM says who made the core, and which of theirs it is.
    core = [info[field] for field in ("CPU implementer", "CPU part") if field in info]
    named = platform.processor() or platform.machine()
    return " ".join([named, *core])


def cpu_features() -> list[str]:
    """The instruction sets that matter here, of those the processor has; [] where unknown."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return [feature for feature in _CPU_FEATURES if feature in flags]


def available_memory() -> float:
    """Bytes that can be had without swapping; half of the memory where the system does not say.

    Of a container or a job with a limit of its own, no more than is left of that.
    """
    return min(_of_the_machine(), left_of_the_group())


def _of_the_machine() -> float:
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    return math.inf


def left_of_the_group(
    groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")
) -> float:
    """Bytes that the control groups of this process still allow; infinity without a limit.

    Args:
        groups: Where the system lists them.
        mounted: Where they are described, of version 1 or 2.
    """
    left = math.inf
    with suppress(OSError, ValueError):
        for line in groups.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                names, top = ("memory.max", "memory.current", "inactive_file"), mounted
            elif "memory" in controllers.split(","):
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                top = mounted / "memory"
            else:
                continue
            folder = top / path.strip("/")
            # Those above limit it too; within a container they are mounted as the top.
            for one in {folder, top, *(p for p in folder.parents if top in p.parents)}:
                left = min(left, _left_of(one, *names))
    return left


def _left_of(folder: Path, most: str, used: str, cached: str) -> float:
    try:
        limit = float((folder / most).read_text(encoding="utf-8"))  # "max" where there is none
        usage = float((folder / used).read_text(encoding="utf-8"))
        lines = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
        files = sum(float(line.split()[1]) for line in lines if line.split()[0] == cached)
    except (OSError, ValueError, IndexError):
        return math.inf
    return max(0.0, limit - usage + files)  # files that are cached are given back on demand


def cuda_devices() -> list[str]:
    """Names of the CUDA devices that torch sees."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpuinfo() -> dict[str, str]:
    """The first processor's block of /proc/cpuinfo; {} where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n", 1)[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _revision() -> str | None:
    """The commit of the checkout this package runs from, with + where files differ from it."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+" if _git(root, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
