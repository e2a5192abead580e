"""Puts ``no_grad`` and ``autocast`` regions, which export sets apart, back into the graph.

Gradients and mixed precision are whoever runs the network's choice again: a graph form trains
everything that requires gradients, under the autocast of its caller.
"""

from __future__ import annotations

from typing import Any

from torch.fx import Graph, GraphModule, Node

from automl.types import InputError

#: Higher-order operators -> position of the subgraph among their arguments.
_REGIONS = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}


def inline_regions(module: GraphModule) -> None:
    """Replaces calls of regions by their contents, in place.

    Raises:
        InputError: If control flow that depends on data is left.
    """
    for node in list(module.graph.nodes):
        name = _higher_order_name(node)
        if name in _REGIONS:
            _inline(module, node, _REGIONS[name])
        elif name is not None:
            raise InputError(
                f"the forward calls {name}, control flow that depends on data; "
                "such networks cannot be traced"
            )


def _higher_order_name(node: Node) -> str | None:
    if node.op != "call_function" or getattr(node.target, "namespace", "") != "higher_order":
        return None
    return str(getattr(node.target, "_name", node.target))


def _inline(module: GraphModule, node: Node, position: int) -> None:
    graph: Graph = module.graph
    holder, *arguments = node.args[position:]
    assert isinstance(holder, Node)
    region = module.get_submodule(str(holder.target))
    assert isinstance(region, GraphModule)
    inline_regions(region)
    inputs = region.graph.find_nodes(op="placeholder")
    with graph.inserting_before(node):
        results: Any = graph.graph_copy(
            region.graph,
            dict(zip(inputs, arguments, strict=True)),  # type: ignore[arg-type]
        )
    if isinstance(results, Node):
        node.replace_all_uses_with(results)
    else:
        for user in list(node.users):  # export always takes results apart
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
    graph.erase_node(node)
    if not holder.users:
        graph.erase_node(holder)
