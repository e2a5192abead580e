"""The model card: what a pruned network is, what it was made from and how well it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from automl._version import __version__
from automl.executors.latency import Latency, described
from automl.export import Exported
from automl.runs import row_of_found


def model_card(
    result: Mapping[str, Any],
    config: Mapping[str, Any],
    files: Sequence[Exported],
    normalisation: Mapping[str, Any],
    dtype: str = "float32",
    latencies: Mapping[str, Latency] | None = None,
) -> str:
    """Markdown.

    Args:
        result: result.json of the run.
        config: Its settings.
        files: What was exported.
        normalisation: ``mean`` and ``std`` of inputs in [0, 1], or None.
        dtype: Of the inputs; integers are ids.
        latencies: How long what was exported takes, torch first.
    """
    rows = result["rows"]
    dense = rows[0]
    found = row_of_found(result)
    model, choices = config["model"], config.get("choices", {})
    strategy = choices.get("strategy", "?")
    lines = [
        f"# {result['model']}, pruned",
        "",
        f"{result['model']} pruned to {_percent(found['macs'], dense['macs'])} of its MACs and "
        f"{_percent(found['params'], dense['params'])} of its parameters by PrunePilot "
        f"{__version__} (strategy {strategy}, budget {result['budget']}, "
        f"{result['trials']} trials).",
        "",
        "## How well it does",
        "",
        f"Data: {result['data']}. The search saw {result['validation_images']} validation images; "
        f"test figures are of {result['test_images']} other images, measured once.",
        "",
        "| network | test top-1 % | MACs | parameters | latency, ratio to dense |",
        "|---|---|---|---|---|",
        *[_row(row) for row in rows],
        "",
        f"Latency: {described(result['device'], **result.get('latency_of', {}))}, side by side.",
        "",
        "## How to run it",
        "",
        f"Input: {dtype}, shape (batch, {', '.join(map(str, model['input_shape'] or []))}), "
        f"{_normalisation(normalisation) if 'int' not in dtype else 'ids'}. Output: logits.",
        "",
        "| file | largest difference to the network | on examples |",
        "|---|---|---|",
        *[f"| {one.file.name} | {one.error:.2g} | {one.examples} |" for one in files],
        "",
        *_latencies(latencies or {}),
        "`policy.json` says which units of the dense network were kept.",
        "",
        "## What it was made from",
        "",
        f"- dense network: `{model['factory']}`, weights `{_source(model['checkpoint'])}`",
        f"- licence of the dense weights: {model.get('licence') or 'not recorded'}",
        f"- data: {result['data']}, whose terms apply to what was learned from it",
        "- intended use, limits and biases: those of the dense network; pruning may hurt rare "
        "classes more than the average tells",
        "",
    ]
    return "\n".join(lines)


def _latencies(latencies: Mapping[str, Latency]) -> list[str]:
    if not latencies:
        return []
    return [
        "| run by | ms, median | quartiles apart, ms | ratio to torch |",
        "|---|---|---|---|",
        *[
            f"| {name} | {one.median_ms:.3g} | {one.iqr_ms:.2g} | {one.ratio:.2f} |"
            for name, one in latencies.items()
        ],
        "",
        "One example on the CPU of the machine that exported, one thread, taking turns.",
        "",
    ]


def _row(row: Mapping[str, Any]) -> str:
    ratio = "-" if row["latency_ratio"] is None else f"{row['latency_ratio']:.2f}"
    figures = f"{100 * row['test_top1']:.2f} | {row['macs']:,} | {row['params']:,} | {ratio}"
    return f"| {row['name']} | {figures} |"


def _percent(value: float, of: float) -> str:
    return f"{100 * value / of:.1f} %"


def _normalisation(normalisation: Mapping[str, Any]) -> str:
    mean, std = normalisation.get("mean"), normalisation.get("std")
    if mean is None or std is None:
        return "normalised as for the dense network"
    numbers = [", ".join(f"{x:g}" for x in values) for values in (mean, std)]
    return f"images in [0, 1] less mean ({numbers[0]}), divided by std ({numbers[1]})"


def _source(checkpoint: str | None) -> str:
    """Where weights came from, without a folder of somebody's machine."""
    if checkpoint is None:
        return "random"
    return checkpoint.rpartition("/")[2] if ":" not in checkpoint else checkpoint
