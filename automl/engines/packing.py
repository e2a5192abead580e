"""Objects as one block of bytes that processes can share: a pickle, then all tensors' memory.

Tensors are not copied when a block is opened: they lie in it. Whoever opens the same block in
shared memory therefore holds every weight and image once, however many processes there are.
"""

from __future__ import annotations

import io
import pickle
import warnings
from dataclasses import dataclass
from typing import Any

import cloudpickle
import torch
from torch import Tensor, UntypedStorage
from torch.storage import TypedStorage

from automl.engines.errors import cannot_send

#: Where storages start: what torch's own allocator gives, and vector instructions like.
_ALIGN = 64

#: How a pickle names a tensor's memory: offset, bytes, type and device.
_Place = tuple[int, int, torch.dtype, str]


@dataclass(frozen=True, eq=False)
class Packed:
    """An object ready to be written.

    Attributes:
        head: The pickle.
        storages: (offset, memory) of the tensors; offsets count from the end of the head.
        size: Bytes of the whole block.
    """

    head: bytes
    storages: tuple[tuple[int, UntypedStorage], ...]
    size: int

    def write(self, buffer: Any) -> None:
        """Writes the block.

        Args:
            buffer: Something writable of at least ``size`` bytes.
        """
        block = torch.frombuffer(buffer, dtype=torch.uint8)
        start = _aligned(len(self.head))
        block[: len(self.head)] = torch.frombuffer(bytearray(self.head), dtype=torch.uint8)
        for offset, storage in self.storages:
            flat = torch.empty(0, dtype=torch.uint8).set_(storage)
            block[start + offset : start + offset + len(flat)] = flat


def pack(data: object, what: str) -> Packed:
    """Prepares an object for other processes.

    Functions and classes of ``__main__`` travel with it, all others by name. A tensor that is a
    small part of a large one is packed without the rest.

    Args:
        data: What to pack.
        what: What to call it in errors.

    Raises:
        InputError: It cannot be pickled.
    """
    file = io.BytesIO()
    packer = _Packer(file)
    try:
        packer.dump(data)
    except Exception as error:  # pickling runs the objects' own code, which may raise anything
        raise cannot_send(what, error) from error
    head = file.getvalue()
    return Packed(head, tuple(packer.storages), max(_aligned(len(head)) + packer.size, 1))


def unpack(buffer: Any, head: int) -> Any:
    """The object in a block.

    Args:
        buffer: The block; it must not change and must stay as long as the object does.
        head: Bytes of its pickle.
    """
    view = memoryview(buffer)
    return _Unpacker(io.BytesIO(view[:head]), view[_aligned(head) :]).load()


class _Packer(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.storages: list[tuple[int, UntypedStorage]] = []
        self.size = 0
        # By address: kept alive, so that none is given out twice.
        self._known: dict[int, tuple[UntypedStorage, int]] = {}

    def persistent_id(self, obj: Any) -> _Place | None:
        if isinstance(obj, TypedStorage):
            return self._place(obj._untyped_storage, obj.dtype)
        if isinstance(obj, UntypedStorage):
            return self._place(obj, torch.uint8)
        return None

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is Tensor and _is_small_part(obj):
            own: Any = obj.detach().clone().requires_grad_(obj.requires_grad)
            return own.__reduce_ex__(4)
        return super().reducer_override(obj)

    def _place(self, storage: Any, dtype: torch.dtype) -> _Place:
        known = self._known.get(storage._cdata)
        if known is None:
            known = self._known[storage._cdata] = (storage, self.size)
            self.storages.append((self.size, storage.cpu()))
            self.size += _aligned(storage.nbytes())
        return known[1], storage.nbytes(), dtype, str(storage.device)


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: memoryview) -> None:
        super().__init__(file)
        self._tensors = tensors
        self._made: dict[int, Any] = {}

    def persistent_load(self, pid: Any) -> TypedStorage:
        offset, size, dtype, device = pid
        storage = self._made.get(offset) if size else UntypedStorage(0)  # type: ignore[no-untyped-call]
        if storage is None:
            storage = self._made[offset] = _storage(self._tensors[offset : offset + size], device)
        made: Any = TypedStorage
        return made(wrap_storage=storage, dtype=dtype, _internal=True)  # type: ignore[no-any-return]


def _storage(part: memoryview, device: str) -> UntypedStorage:
    with warnings.catch_warnings():
        # Blocks of some stores are read-only; nothing writes into the tensors of a block.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        storage = torch.frombuffer(part, dtype=torch.uint8).untyped_storage()
    return storage if device == "cpu" else storage.to(device=torch.device(device))


def _is_small_part(tensor: Tensor) -> bool:
    if tensor.layout != torch.strided or tensor.is_quantized or not tensor.is_leaf:
        return False
    return 2 * tensor.numel() * tensor.element_size() < tensor.untyped_storage().nbytes()


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
