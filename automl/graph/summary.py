"""Text for people: layers, groups and frozen parts of a traced network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from automl.types import LayerSpec

if TYPE_CHECKING:
    from automl.graph.trace import Trace


def summarise(trace: Trace) -> str:
    """Three plain tables and a line of totals."""
    layers = text_table(
        ("layer", "kind", "in", "out", "kernel", "map", "MACs", "params"),
        [_layer_row(layer) for layer in trace.layers],
    )
    groups = text_table(
        ("group", "kind", "units", "written by", "read by"),
        [
            (t.name, t.kind, str(t.units), _listing(t.producers), _listing(t.readers))
            for t in trace.groups
        ],
    )
    parts = [layers, "", f"{len(trace.groups)} prunable groups", groups]
    if trace.frozen:
        frozen = text_table(("frozen", "because"), [(f.name, f.reason) for f in trace.frozen])
        parts += [
            "",
            f"{len(trace.frozen)} frozen part{'' if len(trace.frozen) == 1 else 's'}",
            frozen,
        ]
    parts += ["", totals(trace)]
    return "\n".join(parts)


def totals(trace: Trace) -> str:
    """One line: MACs, parameters, which form slim networks take, time taken."""
    plan = trace.plan
    if not plan.module_form:
        form = "slim networks are graph modules: the module's own classes do not follow"
    elif plan.graph_targets:
        form = (
            f"slim networks keep the module's own classes unless one of {len(plan.graph_targets)} "
            "groups is pruned that constants in forward depend on (then a graph module)"
        )
    else:
        form = "slim networks keep the module's own classes"
    return (
        f"{type(trace.model).__name__}: {trace.macs:,} MACs, {trace.params:,} parameters for one "
        f"example; {form}; traced in {trace.seconds:.1f} s"
    )


def _layer_row(layer: LayerSpec) -> tuple[str, ...]:
    kernel = "x".join(map(str, layer.kernel_size)) or "-"
    if layer.groups > 1:
        kernel += f" groups={layer.groups}"
    size = f"{layer.out_height}x{layer.out_width}" if layer.out_width > 1 else str(layer.out_height)
    return (
        layer.name, layer.kind, str(layer.in_channels), str(layer.out_channels), kernel, size,
        f"{layer.macs:,}", f"{layer.params:,}",
    )  # fmt: skip


def _listing(names: tuple[str, ...]) -> str:
    if len(names) <= 2:
        return ", ".join(names)
    return f"{names[0]}, {names[1]} and {len(names) - 2} more"


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows below a head, columns as wide as they need to be."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
             for row in [head, *rows]]  # fmt: skip
    return "\n".join([lines[0], "-" * min(sum(widths) + 2 * len(widths), 110), *lines[1:]])
