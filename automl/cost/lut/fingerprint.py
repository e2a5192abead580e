"""On what a table was measured: a time says nothing without it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from automl.types import InputError

#: ``Fingerprint.covers`` of tables that know convolutions and linear layers alone.
LAYERS_ONLY = "layers"

#: What has to agree before one device's times are used on another.
_DECISIVE = ("device", "processor", "capability", "threads", "dtype", "layout", "torch")
_COMPARED = {"torch": "release"}


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A device and how it was measured.

    Attributes:
        device: ``cpu`` or ``cuda``.
        processor: Model of the processor or the graphics card.
        capability: Instruction set that torch uses, or the CUDA compute capability.
        cores: Cores of the machine.
        threads: CPU threads used.
        torch: torch's version.
        dtype: What networks compute in.
        layout: ``contiguous`` or ``channels_last`` images.
        repeats: Runs of each operator.
        date: UTC day of the first entry, ISO 8601.
        system: Operating system and architecture.
        source: ``measured``, or what it was imported from.
        covers: Empty where it knows operators as they are executed, else ``LAYERS_ONLY``.
    """

    device: str
    processor: str
    capability: str
    cores: int
    threads: int
    torch: str
    dtype: str = "float32"
    layout: str = "contiguous"
    repeats: int = 0
    date: str = ""
    system: str = ""
    source: str = "measured"
    covers: str = ""

    @property
    def release(self) -> str:
        """Torch's version as far as it decides times: neither patches nor builds for others."""
        return ".".join(self.torch.split("+")[0].split(".")[:2])

    @property
    def name(self) -> str:
        """A file name for the table: what decides its times, in short."""
        threads = f"{self.threads}t" if self.device == "cpu" else ""
        version = f"torch{self.release}"
        layout = "nhwc" if self.layout == "channels_last" else ""
        parts = [self.device, self.processor, self.capability, threads, self.dtype, layout, version]
        return "-".join(filter(None, map(_slug, parts)))

    def differences(self, here: Fingerprint) -> list[str]:
        """What differs between this table and a device, each as ``field (there, here)``."""
        return [
            f"{name} ({getattr(self, name)} in the table, {getattr(here, name)} here)"
            for name in _DECISIVE
            if getattr(self, _COMPARED.get(name, name)) != getattr(here, _COMPARED.get(name, name))
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; :meth:`from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Fingerprint:
        """Reads what :meth:`to_dict` wrote.

        Raises:
            InputError: A field is missing, unknown or of another type.
        """
        fields = cls.__dataclass_fields__
        unknown = set(document) - set(fields)
        missing = {"device", "processor", "torch"} - set(document)
        if unknown or missing:
            what = f"unknown {sorted(unknown)}" if unknown else f"without {sorted(missing)}"
            raise InputError(f"the table's fingerprint is not readable: {what}")
        plain = {"capability": "", "cores": 0, "threads": 1, **document}
        for name, value in plain.items():
            expected = int if fields[name].type == "int" else str
            if not isinstance(value, expected) or isinstance(value, bool):
                raise InputError(f"the table's fingerprint is not readable: {name} is {value!r}")
        return cls(**plain)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
