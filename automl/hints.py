"""What to say when a name is not known."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an "unknown name" message: the nearest known name, or all of them.

    Returns:
        For example ``"did you mean 'macs'?"`` or ``"there are macs, params"``.
    """
    names = [str(one) for one in known]
    near = nearest(name, names)
    return f"did you mean {near!r}?" if near is not None else f"there are {', '.join(names)}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like it; None where none is."""
    return next(iter(get_close_matches(str(name), list(known), n=1, cutoff=0.5)), None)
