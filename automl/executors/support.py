"""What this machine's processor and installation allow the executors to do."""

from __future__ import annotations

from collections.abc import Mapping

from automl.executors.kernels import cpu

#: What kernels need, and what for; see ``automl.executors.kernels.cpu``.
_NEEDS = {
    "16 floats at once (AVX-512F)": cpu.FLOATS,
    "bfloat16 kernels (AVX-512BW)": cpu.WORDS,
    "int8 and codebook kernels (VBMI, VNNI)": cpu.BYTES,
    "8 floats at once (AVX2, FMA)": frozenset({"avx2", "fma"}),
}


def support() -> dict[str, str]:
    """What is there -> yes, or what happens without it, in words."""
    found = {name: _yes(cpu.supports(needs)) for name, needs in _NEEDS.items()}
    found["kernels in use"] = _kernels()
    found["compiled kernels"] = _cache()
    found["dense baselines"] = ", ".join(_baselines())
    found["CUDA 2:4"] = _semi_structured()
    return found


def _yes(there: bool) -> str:
    return "yes" if there else "no"


def _kernels() -> str:
    if cpu.supports(cpu.BYTES):
        return "vectors, in all formats"
    if cpu.supports(cpu.FLOATS):
        return "vectors for float32; plain loops where instructions are missing"
    return "plain loops, compiled for this processor: correct, but slower"


def _cache() -> str:
    """Where Numba keeps what it compiled."""
    from automl.executors.kernels import checks

    held = getattr(getattr(checks.all_finite, "_cache", None), "_impl", None)
    locator = type(getattr(held, "locator", None)).__name__
    places = {
        "InTree": "beside the package",
        "UserWide": "in the user's cache",
        "UserProvided": "in NUMBA_CACHE_DIR",
    }
    where = [text for name, text in places.items() if name in locator]
    return f"kept on disk, {where[0]}" if where else "not known to be kept"


def _baselines() -> list[str]:
    import torch

    from automl.executors import onnx_runtime

    available: Mapping[str, bool] = {
        "torch": True,
        "oneDNN": bool(torch._C._has_mkldnn),
        "ONNX Runtime": onnx_runtime.installed(),
    }
    return [name for name, there in available.items() if there]


def _semi_structured() -> str:
    from automl.executors.nm24_cuda import unsupported

    return unsupported() or "yes"
