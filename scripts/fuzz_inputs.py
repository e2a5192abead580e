"""Damages files: by their bytes, and by what they say.

A mutation is drawn from a seeded generator, so that an input can be made again from its number.
Half of them know the format (JSON, CSV, YAML, safetensors, pickle, zip) and change what it says
into what an attacker or a broken disk would leave; the others change bytes.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import pickle
import random
import zipfile
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import yaml

#: A module that notes that it was imported; nothing may ever do so.
CANARY = "fuzz_canary"

_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

#: What is put in the place of values.
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 255, 256, 1 << 31, 1 << 40, 1 << 63, -(1 << 63), 1 << 70,
    10**400, 0.5, -0.5, 1e308, 5e-324, float("nan"), float("inf"), float("-inf"), "", "0", "-1",
    "1e400", "NaN", "\x00", "\ud800", "a" * 70_000, "9" * 5_000, "../../../canary", "/canary",
    "C:\\canary", "..", ".", "a/../../canary", "a\nb", "'\"\\", "__class__", "__import__",
    f"{CANARY}.run", f"{CANARY}:run", f"__import__('{CANARY}')", "os.system", "torch.load",
    "builtins.eval", "${oc.env:HOME}", "${oc.decode:[1]}", [], {}, [[]], [None], [0] * 9_999,
    {"_target_": f"{CANARY}.run"}, {"_target_": "os.system", "_args_": [f"echo {CANARY}"]},
    {"ref": "nowhere"}, {"dict": {"a": {"ref": "x"}}}, {"factory": f"{CANARY}:run", "kwargs": {}},
)  # fmt: skip


class Payload:
    """Runs the canary when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """Names what unpickling is to call."""
        return eval, (f"__import__('{CANARY}')",)


def mutate(content: bytes, form: str, rng: random.Random) -> bytes:
    """A damaged copy.

    Args:
        content: A whole file.
        form: Its format, one of ``FORMS`` or any other for bytes alone.
        rng: Where choices come from.
    """
    aware = FORMS.get(form)
    if aware is not None and rng.random() < 0.6:
        return aware(content, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        content = _bytes(content, rng)
    return content


def _bytes(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    at, length = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 4, 8, 64))
    kind = rng.randrange(8)
    if kind == 0:
        return bytes(data[:at])
    if kind == 1:
        data[at : at + length] = b""
    elif kind == 2:
        data[at:at] = data[at : at + length]
    elif kind == 3:
        data[at : at + length] = rng.randbytes(length)
    elif kind == 4:
        data[at : at + length] = rng.choice((b"\x00", b"\xff")) * length
    elif kind == 5:
        data[at:at] = rng.choice((b'"', b"{", b"[", b"-", b"\n", b",", b"[" * 20_000, b"9" * 400))
    elif at < len(data):
        data[at] ^= 1 << rng.randrange(8)
    return bytes(data)


# ---- documents


def change(document: Any, rng: random.Random) -> Any:
    """A document with one to three of its values, keys or lengths changed."""
    document = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(document))
        if not places:
            return rng.choice(HOSTILE)
        _change_one(*rng.choice(places), rng)
    return document


def _places(node: Any) -> Any:
    if isinstance(node, dict | list):
        for key in node if isinstance(node, dict) else range(len(node)):
            yield node, key
            yield from _places(node[key])


def _change_one(parent: Any, key: Any, rng: random.Random) -> None:
    kind = rng.randrange(8)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[str(rng.choice(HOSTILE))[:99]] = parent.pop(key)
    elif kind == 2 and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
    elif kind == 3 and isinstance(parent[key], int | float):
        parent[key] = rng.choice((-parent[key], parent[key] + 1, parent[key] - 1, parent[key] * 2))
    elif kind == 4:
        parent[key] = [parent[key]]
    else:
        parent[key] = copy.deepcopy(rng.choice(HOSTILE))


def _dump(document: Any) -> bytes:
    try:
        return json.dumps(document).encode()
    except ValueError:  # integers longer than Python prints
        return b'{"schema": ' + b"9" * 5_000 + b"}"


def _json(content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.03:
        return b"[" * 100_000
    return _dump(change(json.loads(content), rng))


def _json_lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    lines[at] = _json(lines[at], rng) + b"\n"
    if rng.random() < 0.2:
        lines.insert(at, rng.choice(lines))
    return b"".join(lines)


def _yaml(content: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.1:
        tag = rng.choice(("apply:fuzz_canary.run []", "new:fuzz_canary.Run {}", "name:os.system"))
        return content + f"more: !!python/object/{tag}\n".encode()
    if rng.random() < 0.03:  # references that double
        lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
        return content + "\n".join(lines).encode()
    changed = change(_whole_yaml(content), rng)
    try:
        return _dump_yaml(changed).encode("utf-8", "surrogatepass")
    except ValueError:
        return content + b"seed: " + b"9" * 5_000


@lru_cache(maxsize=4)
def _whole_yaml(content: bytes) -> Any:
    """The whole sample, read once; ``change`` copies it."""
    return yaml.safe_load(content)


def _dump_yaml(document: Any) -> str:
    """By libyaml where there is one, which is ten times as fast but writes no lone surrogates."""
    try:
        return str(yaml.dump(document, Dumper=_DUMPER, sort_keys=False))
    except UnicodeEncodeError:
        return str(yaml.safe_dump(document, sort_keys=False))


def _csv(content: bytes, rng: random.Random) -> bytes:
    rows = list(csv.reader(io.StringIO(content.decode(), newline="")))
    for _ in range(rng.choice((1, 1, 2))):
        row = rng.choice(rows)
        kind = rng.randrange(6)
        if kind == 0:
            rows.append(list(row))
        elif kind == 1 and row:
            row.pop(rng.randrange(len(row)))
        elif row:
            value = rng.choice(HOSTILE)
            is_huge = isinstance(value, int) and abs(value) > 10**100
            row[rng.randrange(len(row))] = "9" * 400 if is_huge else str(value)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "surrogatepass")


def _safetensors(content: bytes, rng: random.Random) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header, rest = content[8 : 8 + length], content[8 + length :]
    kind = rng.randrange(4)
    if kind == 0:
        wrong = rng.choice((0, 1, length - 1, length + 1, 1 << 31, 1 << 62, (1 << 64) - 1))
        return wrong.to_bytes(8, "little") + header + rest
    if kind == 1:  # the arrays
        return content[: 8 + length] + _bytes(rest, rng)
    header = _dump(change(json.loads(header), rng))
    return len(header).to_bytes(8, "little") + header + rest


def _pickle(content: bytes, rng: random.Random) -> bytes:
    kind = rng.randrange(5)
    if kind == 0:
        return pickle.dumps(Payload(), protocol=rng.randrange(5))
    if kind == 1:
        return pickle.dumps({"state_dict": Payload()}, protocol=2)
    if kind == 2:  # a payload within
        call = f"cbuiltins\neval\n(S\"__import__('{CANARY}')\"\ntR0".encode()
        at = rng.choice((2, rng.randrange(len(content))))
        return content[:at] + call + content[at:]
    return _bytes(content, rng)


def _zip(content: bytes, rng: random.Random) -> bytes:
    """A torch checkpoint: members are damaged, renamed, doubled or replaced by a payload."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(out, "w") as after:
        names = before.namelist()
        chosen, kind = rng.choice(names), rng.randrange(4)
        if rng.random() < 0.5:
            chosen = next(name for name in names if name.endswith("data.pkl"))
        for name in names:
            data = before.read(name)
            if name == chosen:
                if kind == 0:
                    continue
                if kind == 1:
                    name = rng.choice(("../../canary", "/canary", "a" * 200, name + "x"))
                else:
                    data = _pickle(data, rng) if name.endswith("pkl") else _bytes(data, rng)
            after.writestr(name, data)
    return out.getvalue()


FORMS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "json": _json, "jsonl": _json_lines, "yaml": _yaml, "csv": _csv,
    "safetensors": _safetensors, "pickle": _pickle, "zip": _zip,
}  # fmt: skip
