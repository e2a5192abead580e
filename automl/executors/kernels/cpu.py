"""Which vector instructions Numba may generate on this machine.

LLVM ends the process when asked for an instruction that its target lacks, so every vector kernel
names what it needs and is not compiled where that is missing. What counts is the target Numba was
set to (``NUMBA_CPU_NAME``, ``NUMBA_CPU_FEATURES``), not what the processor could do.
"""

from __future__ import annotations

from functools import cache

#: Needed by kernels on 16 floats: fused multiply-add and permutations of two registers.
FLOATS = frozenset({"avx512f"})

#: Permutations of 16-bit words.
WORDS = frozenset({"avx512f", "avx512bw"})

#: Permutations of bytes, and dot products of four bytes each.
BYTES = frozenset({"avx512f", "avx512bw", "avx512vbmi", "avx512vnni"})


@cache
def target_features() -> frozenset[str]:
    """LLVM's names of the instruction sets that compiled code may use."""
    from numba.core.registry import cpu_target

    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    return frozenset(name[1:] for name in features.split(",") if name.startswith("+"))


def supports(needed: frozenset[str]) -> bool:
    """Whether a kernel with these needs can be compiled here."""
    return needed <= target_features()
