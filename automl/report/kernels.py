"""What ``prunepilot bench RUN`` and ``export RUN`` left in run folders, for the page."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from automl.report.loading import UNREADABLE

BENCH = "bench.json"
#: What ``export`` measured of the exported network: torch, ONNX Runtime and packed layers in turn.
EXPORTED = "export-latency.json"
_NAMES = {"torch": "torch", "onnxruntime": "ONNX Runtime", "packed": "packed layers"}


def benches(folders: Iterable[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """Times per layer and of whole networks, dense against sparse, and of exported networks.

    Args:
        folders: Of runs.

    Returns:
        One entry per file of times, and a line per file that cannot be read.
    """
    found, broken = [], []
    for folder in folders:
        for file, verb, read in ((BENCH, "bench", _bench), (EXPORTED, "export", _exported)):
            path = folder / file
            if not path.is_file():
                continue
            try:
                found.append(read(folder.name, json.loads(path.read_text(encoding="utf-8"))))
            except UNREADABLE as error:
                reason = f"no {error}" if isinstance(error, KeyError) else error
                broken.append(
                    f"{path}: unreadable ({reason}); prunepilot {verb} {folder} writes it"
                )
    return found, broken


def _exported(name: str, document: Mapping[str, Any]) -> dict[str, Any]:
    times = {_NAMES.get(key, key): own["median_ms"] for key, own in document["networks"].items()}
    return {
        "name": f"{name}, exported",
        "about": f"the exported network, {_about(document)}, one example",
        "rows": [],
        "totals": [[key, ms] for key, value in times.items() if (ms := _ms(value)) is not None],
    }


def _bench(name: str, document: Mapping[str, Any]) -> dict[str, Any]:
    # A layer is listed once per format where several were tried: the one that runs is shown.
    used = [row for row in document["rows"] if row.get("used", True)]
    rows = [
        {"layer": str(row["layer"]), "format": str(row["format"]), "dense": dense, "sparse": sparse}
        for row in used
        if (dense := _ms(row["dense_ms"])) is not None
        and (sparse := _ms(row["sparse_ms"])) is not None
    ]
    form = str(document.get("dense_form", ""))
    return {
        "name": name,
        "about": _about(document),
        "rows": rows,
        "totals": _totals(document, form),
    }


def _about(document: Mapping[str, Any]) -> str:
    threads = int(document["threads"])
    about = f"{document['device']}, {threads} thread{'s' if threads != 1 else ''}"
    if "batch" in document:
        about += f", batch {document['batch']}"
    if (document.get("busy_cores") or 0) > 0.5:
        about += "; the machine was busy, so compare ratios, not milliseconds"
    return about


def _totals(document: Mapping[str, Any], form: str) -> list[list[Any]]:
    """Name and milliseconds of every whole network that was timed."""
    networks = document.get("networks")
    if not networks:
        times = {"dense": document["dense_ms"], "sparse": document["sparse_ms"]}
    else:
        times = {name: own["median_ms"] for name, own in networks.items()}
    if form and "dense" in times:
        shown = {"onnxruntime": "ONNX Runtime"}.get(form, form)
        times = {f"dense ({shown})" if name == "dense" else name: ms for name, ms in times.items()}
    return [[name, ms] for name, value in times.items() if (ms := _ms(value)) is not None]


def _ms(value: Any) -> float | None:
    number = math.nan if value is None else float(value)
    return round(number, 6) if math.isfinite(number) else None
