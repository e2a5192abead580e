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
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    """The instruction sets that matter here, of those the processor has; [] where unknown."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return [feature for feature in _CPU_FEATURES if feature in flags]


def available_memory() -> float:
    """Bytes that can be had without swapping; half of the memory where the system does not say."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    return math.inf


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
