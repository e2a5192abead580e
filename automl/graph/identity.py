"""Whether two networks are the same to a tracer: all that their forwards may look at."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from automl.graph.compiled import is_compiled
from automl.hashing import digest

#: Kept by where they lie in memory: made anew under the same name they may do something else.
_CODE = (type, FunctionType, BuiltinFunctionType)


@dataclass(frozen=True, eq=False)
class Identity:
    """Of a network with its example inputs, within this process.

    Attributes:
        key: Equal for networks that are traced alike.
        code: Classes and functions that it names by their place in memory. While somebody holds
            them, nothing else has that place.
    """

    key: str
    code: tuple[Any, ...]


def identity(model: nn.Module, inputs: tuple[Any, ...]) -> Identity | None:
    """What a network is: its classes, attributes, hooks and weights.

    What its code reads elsewhere (globals, files) is not looked at.

    Args:
        model: The network.
        inputs: What it is called with; of tensors only what they are like.

    Returns:
        None where that cannot be told, because a part of it cannot be pickled or is compiled.
    """
    if any(map(is_compiled, model.modules())):  # which modules do not pickle
        return None
    sink = _Digest()
    stream = _Stream(sink)
    try:
        stream.dump((model, _like(inputs)))
    except Exception:  # whatever the parts of a network raise when they are pickled
        return None
    return Identity(sink.hash.hexdigest(), tuple(stream.code))


def _like(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (list(value.shape), str(value.dtype), str(value.device), value.stride())
    if isinstance(value, dict):
        return {name: _like(item) for name, item in value.items()}
    return tuple(map(_like, value)) if isinstance(value, (list, tuple)) else value


class _Digest:
    """A file that only remembers what it was like."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return len(data)


class _Stream(pickle.Pickler):
    """Writes tensors as digests, and code by where it lies."""

    def __init__(self, sink: _Digest) -> None:
        super().__init__(sink, protocol=5)
        self.code: list[Any] = []
        self._tensors: dict[int, int] = {}
        self._memory: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, Tensor):
            return self._tensor(obj)
        if isinstance(obj, _CODE):
            # The forward by itself: somebody may have put another one into the class.
            parts = [obj, getattr(obj, "forward", None)]
            self.code += parts
            return ("code", *map(id, parts))
        if isinstance(obj, MethodType):  # pickled, it would be whatever its object has by its name
            self.code.append(obj.__func__)
            return ("method", id(obj.__func__), obj.__self__)
        return None

    def _tensor(self, tensor: Tensor) -> Any:
        """What it holds, and which it is: a tied weight is not two equal ones."""
        first = self._tensors.setdefault(id(tensor), len(self._tensors))
        start = tensor.untyped_storage().data_ptr()
        memory = self._memory.setdefault(start, len(self._memory))
        place = (memory, tensor.storage_offset(), tensor.stride())
        kind = (type(tensor), str(tensor.device), tensor.requires_grad, vars(tensor))
        return ("tensor", first, place, kind, digest(tensor))
