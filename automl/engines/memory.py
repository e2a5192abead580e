"""Blocks of memory that several processes read."""

from __future__ import annotations

import os
from multiprocessing.shared_memory import SharedMemory
from typing import Any, NamedTuple

from automl.engines.packing import Packed, unpack

#: Where Linux keeps shared memory; containers often have little of it.
_MOUNT = "/dev/shm"


class Message(NamedTuple):
    """How a worker finds a block.

    Attributes:
        name: Of the shared memory; None where the block comes along.
        head: Bytes of its pickle.
        content: The block, where it is not shared.
    """

    name: str | None
    head: int
    content: bytes | None


class Block:
    """A block as its owner sees it.

    Attributes:
        message: What a worker is told.
        shared: Whether workers share it; where there is too little shared memory, each gets a copy.
    """

    def __init__(self, packed: Packed) -> None:
        """Writes the block."""
        self._memory = _shared_memory(packed.size)
        self.shared = self._memory is not None
        if self._memory is not None:
            packed.write(self._memory.buf)
            self.message = Message(self._memory.name, len(packed.head), None)
            return
        content = bytearray(packed.size)
        packed.write(content)
        self.message = Message(None, len(packed.head), bytes(content))

    def free(self) -> None:
        """Gives the memory back once the last process that reads it has ended."""
        if self._memory is not None:
            self._memory.close()
            self._memory.unlink()


def open_block(message: Message) -> tuple[Any, Any]:
    """The object in a block, and what has to be kept as long as the object is used."""
    if message.name is None:
        content = bytearray(message.content or b"")
        return unpack(content, message.head), content
    memory = SharedMemory(message.name)
    return unpack(memory.buf, message.head), memory


def _shared_memory(size: int) -> SharedMemory | None:
    """Shared memory of ``size`` bytes; None where there is not enough."""
    try:
        if os.path.isdir(_MOUNT):
            mount = os.statvfs(_MOUNT)
            # Beyond this, the first write would end the process (SIGBUS) instead of raising.
            if size > mount.f_bavail * mount.f_frsize:
                return None
        memory = SharedMemory(create=True, size=size)
    except OSError:
        return None
    if hasattr(os, "posix_fallocate"):
        try:  # now, as another process may take what is free before the first write
            os.posix_fallocate(memory._fd, 0, size)  # type: ignore[attr-defined]
        except OSError:
            memory.close()
            memory.unlink()
            return None
    return memory
