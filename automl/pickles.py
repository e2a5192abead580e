"""What pickles from outside must not ask for, beside code."""

from __future__ import annotations

import pickletools


def check_places(content: bytes) -> None:
    """Refuses pickles that remember a value at a place far beyond what they hold.

    The unpickler makes room for all places up to it: a few bytes could ask for 32 GiB.

    Raises:
        ValueError: One does, or the pickle is damaged.
    """
    for opcode, argument, _ in pickletools.genops(content):
        puts = opcode.name in ("PUT", "BINPUT", "LONG_BINPUT")
        if puts and (argument is None or argument > len(content)):
            raise ValueError(f"a value at place {argument} of {len(content)} bytes")
