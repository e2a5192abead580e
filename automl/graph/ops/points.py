"""Point clouds: sparse convolutions (``automl/executors/spconv3d.py``) and what goes with them.

Rows are voxels, as many as the data has; channels are the second dimension.
"""

from __future__ import annotations

from automl.graph.labels import always
from automl.graph.ops.step import Labels, Layer, Length, Step, handles


@handles("sparse_conv3d")
def sparse_conv3d(step: Step) -> Labels:
    """Ties input channels to the weight's input dimension; the output is the other's."""
    name = step.weight("weight")
    if name is None:
        return step.give_up("read by a sparse convolution whose weight is computed")
    shape = step.shape("weight")
    written, read = (step.parameters.vector(name, shape, dim) for dim in (0, 1))
    data = step.columns(step.labels("features"), 1)
    step.space.tie(data, read, step.where)
    if step.args.get("bias") is not None:
        step.space.tie(step.labels("bias"), written, step.where)
    step.record.layers.append(
        Layer(
            name=step.layer_name(name),
            kind="conv",
            node=step.node,
            weight=name,
            bias=step.tensor_name("bias"),
            reads=Length(data, 0),
            writes=Length(written, 0),
            factors=(Length(written, 0), Length(read, 0)),
            macs=_pairs(step) * step.batch * shape[0] * shape[1],
            geometry={
                "kernel_size": shape[2:],
                "stride": tuple(step.value("stride")) or (1, 1, 1),
                "groups": 1,
                "in_map": (),
                "out_map": (),
            },
        )
    )
    return step.output_like(written, 1)


def _pairs(step: Step) -> int:
    """Pairs of voxels a cloud, as the layer has counted; one for every offset if it has not."""
    node = step.args.get("pairs")
    counted = None if node is None else step.constant(node)
    offsets = 1
    for size in step.shape("weight")[2:]:
        offsets *= size
    return offsets if counted is None else max(round(float(counted)), 1)


@handles("strided_coordinates")
def strided_coordinates(step: Step) -> Labels:
    """Numbers of places: none of them can be removed."""
    return always(step.out_shape)


@handles("cloud_mean")
def cloud_mean(step: Step) -> Labels:
    """Every channel for itself."""
    return step.output_like(step.columns(step.labels("features"), 1), 1)
