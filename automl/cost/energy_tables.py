"""Published energy per operation, with sources; every value can be replaced.

45 nm CMOS at 0.9 V: M. Horowitz, "Computing's energy problem (and what we can do about it)",
ISSCC 2014, figure 1.1.9. Newer processes need less of everything, arithmetic more so than memory;
what a search needs are the ratios.
"""

from __future__ import annotations

from types import MappingProxyType

#: One multiplication, pJ, by the operands' type.
MULTIPLY_PJ = MappingProxyType({"float32": 3.7, "float16": 1.1, "int8": 0.2})

#: One addition to the partial sum, pJ, by the operands' type: products of 8-bit integers are added
#: up in 32 bits (an 8-bit addition takes 0.03 pJ).
ADD_PJ = MappingProxyType({"float32": 0.9, "float16": 0.4, "int8": 0.1})

#: Bits of a weight or an activation.
BITS = MappingProxyType({"float32": 32, "float16": 16, "int8": 8})

#: On-chip memories: bytes each holds, ascending.
SRAM_BYTES = (8 * 1024, 32 * 1024, 1024 * 1024)

#: One access of 64 bits to each of them, pJ.
SRAM_PJ = (10.0, 20.0, 100.0)

#: One access of 64 bits to DRAM, pJ: the lower end of the table's 1.3 to 2.6 nJ. S. Han et al.,
#: "Learning both weights and connections for efficient neural networks" (arXiv 1506.02626, figure
#: 1), have 640 pJ for 32 bits of the same process.
DRAM_PJ = 1300.0

#: One access of 32 bits to a register file, pJ: arXiv 1506.02626, figure 1 (Horowitz's table has
#: no entry for it).
REGISTER_PJ = 1.0

#: Register accesses of one multiply-accumulate: weight, activation and partial sum are read, the
#: partial sum is written (V. Sze et al., "Efficient processing of deep neural networks",
#: Proceedings of the IEEE 105(12), 2017, section V).
REGISTER_ACCESSES = 4
