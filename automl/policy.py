"""Policies: which units every target keeps, as plain data with a versioned JSON form.

A policy is what a search learns and a person exports. It is canonical: two policies that keep the
same units are equal, hash alike and have the same ``key``, whatever ratios asked for them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from automl.hashing import digest
from automl.paths import atomic_write
from automl.types import InputError, Kept, Target

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "prunepilot/policy"
VERSION = 1

#: Kept counts live in int64 arrays.
MOST_UNITS = 2**63 - 1


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """What becomes of one target.

    Equality and hash leave ``ratio`` out: what was asked does not matter, what is kept does.

    Attributes:
        target: Name of the target (``Target.name``).
        granularity: What a unit is: ``channel``, ``head``, ``head_dim`` or a finer grain.
        ratio: The fraction asked to be REMOVED, in [0, 1); ``kept`` is it after rounding.
        kept: Units that stay, in [1, units].
        units: Units of the dense network.
        indices: Which units stay, strictly ascending; None where the pruner is to choose
            them (or where all stay).

    Raises:
        ValueError: A field breaks its rule.
        TypeError: A field has the wrong type.
    """

    target: str
    granularity: str
    ratio: float
    kept: int
    units: int
    indices: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Checks the fields and turns NumPy's numbers into Python's."""
        object.__setattr__(self, "units", _integer("units", self.units, 1, MOST_UNITS))
        object.__setattr__(self, "kept", _integer("kept", self.kept, 1, self.units))
        object.__setattr__(self, "ratio", _ratio(self.ratio))
        if self.indices is not None:
            object.__setattr__(self, "indices", _indices(self.indices, self.kept, self.units))

    @property
    def removed(self) -> float:
        """The fraction that is really removed, in [0, 1)."""
        return 1 - self.kept / self.units

    @property
    def identity(self) -> tuple[str, str, int, int, tuple[int, ...] | None]:
        """What equality compares; where all units stay there is no choice of indices."""
        indices = None if self.kept == self.units else self.indices
        return (self.target, self.granularity, self.kept, self.units, indices)

    def __eq__(self, other: object) -> bool:
        """Whether the same units are kept."""
        if not isinstance(other, Decision):
            return NotImplemented
        return self.identity == other.identity

    def __hash__(self) -> int:
        """Equal for equal decisions."""
        return hash(self.identity)


@dataclass(frozen=True, eq=False)
class Policy:
    """The decisions for all targets of one network.

    Attributes:
        decisions: One per target, in network order, no target twice.
        model_hash: ``weights_hash`` of the dense network; "" where it is not known.
        version: Version of the JSON form.

    Raises:
        ValueError: A target is decided twice, or the version is not known.

    Example:
        >>> searcher = automl.Searcher(model, example_inputs, evaluate, budget={"macs": 0.5})
        >>> policy = searcher.search(trials=1).policy
        >>> policy.save("policy.json")
        >>> automl.Policy.load("policy.json") == policy
        True
        >>> small = automl.prune(model, example_inputs, policy)
    """

    decisions: tuple[Decision, ...]
    model_hash: str = ""
    version: int = VERSION

    def __post_init__(self) -> None:
        """Checks the version, and that no target is decided twice."""
        object.__setattr__(self, "decisions", tuple(self.decisions))
        if self.version != VERSION:
            raise ValueError(f"Policy.version must be {VERSION}, got {self.version}")
        seen: set[str] = set()
        for decision in self.decisions:
            if decision.target in seen:
                raise ValueError(
                    f"Policy.decisions must name every target once, got {decision.target!r} twice"
                )
            seen.add(decision.target)

    @cached_property
    def key(self) -> str:
        """Digest of the units kept: the same for equal policies, and for no others."""
        # No two decisions share a target, so the sort never compares further than the name.
        return digest(sorted(decision.identity for decision in self.decisions))

    def __eq__(self, other: object) -> bool:
        """Whether the same units are kept."""
        if not isinstance(other, Policy):
            return NotImplemented
        return self.key == other.key

    def __hash__(self) -> int:
        """Equal for equal policies."""
        return hash(self.key)

    @classmethod
    def from_kept(
        cls,
        targets: Sequence[Target],
        kept: Kept | Sequence[int],
        *,
        indices: Sequence[Sequence[int] | None] | None = None,
        ratios: Sequence[float] | None = None,
        model_hash: str = "",
    ) -> Policy:
        """The policy that keeps ``kept[i]`` units of ``targets[i]``.

        Args:
            targets: All targets, in network order.
            kept: Units kept, shape (targets,).
            indices: Which units, per target; None leaves the choice to the pruner.
            ratios: The ratios that were asked for; by default those that ``kept`` gives.
            model_hash: ``weights_hash`` of the dense network.

        Raises:
            ValueError: The lengths differ or a count is out of bounds.
        """
        counts = [int(count) for count in kept]
        chosen = [None] * len(targets) if indices is None else list(indices)
        if ratios is None:
            ratios = [1 - n / t.units for n, t in zip(counts, targets, strict=True)]
        rows = zip(targets, counts, chosen, ratios, strict=True)
        decisions = (
            Decision(t.name, t.kind, ratio, count, t.units, None if at is None else tuple(at))
            for t, count, at, ratio in rows
        )
        return cls(tuple(decisions), model_hash)

    def kept(self, targets: Sequence[Target]) -> Kept:
        """Units kept in the order of ``targets``, shape (targets,).

        Raises:
            InputError: The policy is of another network (see ``check``).
        """
        self.check(targets)
        counts = {decision.target: decision.kept for decision in self.decisions}
        return np.array([counts[target.name] for target in targets], np.int64)

    def counts_alone(self) -> Policy:
        """The same counts, with the choice of units left to the pruner: for other weights."""
        return Policy(tuple(replace(one, indices=None) for one in self.decisions))

    def check(self, targets: Sequence[Target], model_hash: str | None = None) -> None:
        """Makes sure that the policy can be applied to a network.

        Args:
            targets: The network's targets.
            model_hash: The network's ``weights_hash``; None compares the structure alone.

        Raises:
            InputError: The first target that differs, or that the weights differ.
        """
        mismatch = self._first_mismatch(targets)
        if mismatch is not None:
            raise InputError(f"policy was learned on another network: {mismatch}")
        if not model_hash or not self.model_hash:
            return
        if model_hash != self.model_hash:
            raise InputError(
                "policy was learned on other weights of this network "
                f"({self.model_hash[:12]}, this model has {model_hash[:12]}); "
                "load those, or use its counts alone and let the units be chosen anew: "
                "prunepilot apply POLICY ..., in Python policy.counts_alone()"
            )

    def _first_mismatch(self, targets: Sequence[Target]) -> str | None:
        known = {target.name: target for target in targets}
        for decision in self.decisions:
            name = repr(decision.target)
            target = known.pop(decision.target, None)
            if target is None:
                return f"it prunes target {name}, which this model does not have"
            if decision.granularity != target.kind:
                return f"target {name} is pruned by {decision.granularity}, here by {target.kind}"
            if decision.units != target.units:
                return f"target {name} has {decision.units} units, this model has {target.units}"
        for missing in known:
            return f"it says nothing of target {missing!r}, which this model has"
        return None

    def to_frame(self) -> pd.DataFrame:
        """One row per target: what it has, what was asked, what is kept and removed."""
        import pandas as pd

        columns = ["target", "granularity", "units", "kept", "ratio", "removed"]
        rows = [[getattr(decision, name) for name in columns] for decision in self.decisions]
        return pd.DataFrame(rows, columns=columns)

    def to_json(self) -> str:
        """The JSON form: the same bytes for the same policy, one decision a line."""
        lines = ",\n".join("    " + json.dumps(asdict(decision)) for decision in self.decisions)
        return (
            "{\n"
            f'  "schema": "{SCHEMA}",\n'
            f'  "version": {self.version},\n'
            f'  "model_hash": {json.dumps(self.model_hash)},\n'
            f'  "decisions": [\n{lines}\n  ]\n'
            "}\n"
        )

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "policy") -> Policy:
        """Reads the JSON form.

        Args:
            text: What ``to_json`` wrote.
            source: What to call the text in errors, for example its path.

        Raises:
            InputError: Anything is missing, unknown, doubled, of another type or out of bounds.
        """
        try:
            return _parse(text)
        # RecursionError: brackets nested thousands deep; UnicodeDecodeError is a ValueError.
        except (ValueError, TypeError, RecursionError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{source} is not a policy: {reason}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON form, whole or not at all.

        Raises:
            OSError: The directory is missing or cannot be written.
        """
        atomic_write(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Policy:
        """Reads a file that ``save`` wrote, on any machine.

        Raises:
            InputError: The file cannot be read or is not a policy.
        """
        if Path(path).suffix.lower() == ".csv":
            raise InputError(
                f"{str(path)!r} is CSV: read it with automl.policy_csv.load_csv({str(path)!r})"
            )
        try:
            text = Path(path).read_bytes()
        except OSError as error:
            raise InputError(f"cannot read policy {str(path)!r}: {error.strerror}") from None
        return cls.from_json(text, repr(str(path)))


def _ratio(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)):
        raise TypeError(f"Decision.ratio must be a number, got {value!r}")
    if not 0 <= value < 1:
        raise ValueError(f"Decision.ratio must be in [0, 1), got {value!r}")
    return float(value)


def _integer(name: str, value: int, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"Decision.{name} must be an integer, got {value!r}")
    if not least <= value <= most:
        raise ValueError(f"Decision.{name} must be in [{least}, {most}], got {value}")
    return int(value)


def _indices(indices: Sequence[int], kept: int, units: int) -> tuple[int, ...]:
    array = np.asarray(indices)
    if array.shape != (kept,):
        raise ValueError(f"Decision.indices must hold kept={kept} entries, got {array.shape}")
    if array.dtype.kind not in "iu":
        raise TypeError(f"Decision.indices must be integers, got {array.dtype}")
    # Compared, not subtracted: a difference of unsigned or huge values would wrap around.
    ascending = bool(np.all(array[:-1] < array[1:]))
    if not ascending or array[0] < 0 or array[-1] >= units:
        raise ValueError(f"Decision.indices must rise strictly within [0, {units})")
    return tuple(array.tolist())


_FIELDS: dict[str, tuple[type, ...]] = {
    "target": (str,),
    "granularity": (str,),
    "ratio": (int, float),
    "kept": (int,),
    "units": (int,),
    "indices": (list, type(None)),
}


def _parse(text: str | bytes) -> Policy:
    document = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f'it must hold "schema": "{SCHEMA}"')
    version = document.get("version")
    if type(version) is not int or version != VERSION:
        raise ValueError(
            f"its version is {_short(version)}, this release reads version {VERSION}; update it"
        )
    _same_names("policy", document, ("schema", "version", "model_hash", "decisions"))
    if not isinstance(document["model_hash"], str):
        raise ValueError("model_hash must be a string")
    if not isinstance(document["decisions"], list):
        raise ValueError("decisions must be a list")
    decisions = [_decision(i, item) for i, item in enumerate(document["decisions"])]
    return Policy(tuple(decisions), document["model_hash"], version)


def _decision(position: int, item: Any) -> Decision:
    where = f"decisions[{position}]"
    if not isinstance(item, dict):
        raise ValueError(f"{where} must be an object")
    _same_names(where, item, tuple(_FIELDS))
    for name, types in _FIELDS.items():
        # type() rather than isinstance(): true and false are no numbers here.
        if type(item[name]) not in types:
            raise ValueError(f"{where}.{name} has the wrong type: {_short(item[name])}")
    indices = item["indices"]
    if indices is not None and any(type(index) is not int for index in indices):
        raise ValueError(f"{where}.indices must be integers")
    try:
        return Decision(**{**item, "indices": None if indices is None else tuple(indices)})
    except (ValueError, TypeError) as error:
        raise ValueError(str(error).replace("Decision.", f"{where}.", 1)) from None


def _same_names(where: str, item: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if name not in item:
            raise ValueError(f"{where} has no field {name!r}")
    for name in item:
        if name not in names:
            raise ValueError(f"{where} has an unknown field {_short(name)}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a field is given twice in one object")
    return names


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _short(value: Any) -> str:
    # An absurd integer may not even be convertible to text (Python's digit limit).
    try:
        text = repr(value)
    except ValueError:
        return "a huge number"
    return text if len(text) <= 60 else text[:57] + "..."
