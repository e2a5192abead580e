"""One item after the other, in this process."""

from __future__ import annotations

import traceback
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from automl.engines import Done, Function
from automl.engines.errors import one_line, require_handle, require_open


class Serial:
    """Runs everything here and now: nothing is copied, nothing can be killed, no time limits."""

    workers = 1
    isolated = False

    def __init__(self) -> None:
        """Holds nothing yet."""
        self._data: dict[Hashable, int] = {}
        self._closed = False

    def put(self, data: Hashable) -> int:
        """See ``Engine``."""
        require_open(self, self._closed)
        return self._data.setdefault(data, len(self._data))

    def submit(self, function: Function, items: Sequence[Any], handle: int) -> Iterator[Done]:
        """See ``Engine``."""
        require_open(self, self._closed)
        require_handle(self, handle, self._data.values())
        data = next(data for data, number in self._data.items() if number == handle)
        return (_done(function, data, index, item) for index, item in enumerate(items))

    def close(self) -> None:
        """See ``Engine``."""
        self._closed = True
        self._data.clear()


def _done(function: Function, data: Any, index: int, item: Any) -> Done:
    try:
        return Done(index, function(data, item))
    except Exception as error:
        return Done(index, None, one_line(error), traceback.format_exc())
