"""Small networks written by hand, at least one for every family of operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Case:
    """A network and what has to be found out about it.

    Attributes:
        make: Builds the network.
        shapes: Shapes of the inputs, batch first.
        targets: "kind units" of each target, by name.
        frozen: Layers that must stay, beside the last one.
        form: ``modules`` if the user's classes follow, ``graph`` if no target leaves them right,
            ``mixed`` if it depends on the target.
        tokens: Size of the vocabulary if the input is token ids.
    """

    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    targets: dict[str, str]
    frozen: frozenset[str] = field(default_factory=frozenset)
    form: str = "modules"
    tokens: int = 0

    def inputs(self, seed: int = 0) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        if self.tokens:
            return tuple(torch.randint(self.tokens, s, generator=generator) for s in self.shapes)
        return tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in self.shapes)


CASES: dict[str, Case] = {}


def case(
    *shapes: tuple[int, ...],
    targets: dict[str, str],
    frozen: tuple[str, ...] = (),
    form: str = "modules",
    tokens: int = 0,
    name: str = "",
    **arguments: Any,
) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Registers a network class as a case."""

    def register(cls: type[nn.Module]) -> type[nn.Module]:
        make = partial(cls, **arguments)
        CASES[name or cls.__name__] = Case(make, shapes, targets, frozenset(frozen), form, tokens)
        return cls

    return register


def conv_bn(inputs: int, outputs: int, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


IMAGE = (3, 3, 8, 8)
TOKENS = (3, 5, 12)


class Stem(nn.Module):
    """Convolution, a body of the subclass's, pooling, a linear head."""

    def __init__(self, width: int = 8, out: int | None = None) -> None:
        super().__init__()
        self.stem = conv_bn(3, width)
        self.head = nn.Linear(out or width, 5)

    def body(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class Tokens(nn.Module):
    """Linear, a body of the subclass's, mean over tokens, a linear head."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.embed = nn.Linear(12, width)
        self.head = nn.Linear(width, 5)

    def body(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x)).mean(1))


@case(TOKENS, targets={"embed": "channel 12"})
class PartOfATable(Tokens):
    """A table of positions that is longer than what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, 9, 12))

    def body(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.positions[:, 1 : x.shape[1] + 1])


# ---- convolutions


@case(IMAGE, targets={"stem.0": "channel 8"})
class Plain(Stem):
    pass


@case(IMAGE, targets={"stem.0": "channel 8", "a.0": "channel 6", "c.0": "channel 6"})
class Residual(Stem):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_bn(8, 6), conv_bn(6, 8)
        self.c, self.d = conv_bn(8, 6), nn.Conv2d(6, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        x = x + self.b(self.a(x))
        return F.relu(x + self.d(self.c(x)))


@case(
    IMAGE,
    targets={"stem.0": "channel 8", "a.0": "channel 6", "b.0": "channel 4", "c.0": "channel 7"},
)
class Concat(Stem):
    def __init__(self) -> None:
        super().__init__(out=7)
        self.a, self.b, self.c = conv_bn(8, 6), conv_bn(8, 4, 1), conv_bn(18, 7)

    def body(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.a(x), x, self.b(x)], 1))


@case(IMAGE, targets={"stem.0": "channel 8", "wide.0": "channel 16"})
class Depthwise(Stem):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.depth, self.thin = conv_bn(8, 16, 1), conv_bn(16, 16, 3, 16), conv_bn(16, 8)

    def body(self, x: Tensor) -> Tensor:
        return x + self.thin(self.depth(self.wide(x)))


@case(IMAGE, targets={"stem.0": "channel 8", "last.0": "channel 6"})
class ChannelMultiplier(Stem):
    def __init__(self) -> None:
        super().__init__(out=6)
        self.depth, self.last = conv_bn(8, 24, 3, 8), conv_bn(24, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.last(self.depth(x))


@case(IMAGE, targets={"stem.0": "channel 4", "grouped.0": "channel 3", "last.0": "channel 6"})
class Grouped(Stem):
    def __init__(self) -> None:
        super().__init__(width=16, out=6)
        self.grouped, self.last = conv_bn(16, 12, 3, 4), conv_bn(12, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.last(self.grouped(x))


@case(IMAGE, targets={"stem.0": "channel 8", "squeeze": "channel 4"})
class SqueezeExcite(Stem):
    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def body(self, x: Tensor) -> Tensor:
        gate = F.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.excite(F.silu(self.squeeze(gate))))


@case(IMAGE, targets={"stem.0": "channel 8", "squeeze": "channel 4"})
class SqueezeExciteLinear(Stem):
    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(8, 4), nn.Linear(4, 8)

    def body(self, x: Tensor) -> Tensor:
        batch, channels, _, _ = x.shape
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3)))))
        return x * F.hardsigmoid(gate).view(batch, channels, 1, 1)


@case(IMAGE, targets={"stem.0": "channel 6", "a.0": "channel 3", "last.0": "channel 7"})
class Shuffle(Stem):
    def __init__(self) -> None:
        super().__init__(width=12, out=7)
        self.a, self.b = conv_bn(12, 6, 1, 2), conv_bn(6, 12, 1)
        self.last = conv_bn(12, 7)

    def body(self, x: Tensor) -> Tensor:
        y = self.a(x)
        batch, channels, height, width = y.shape
        y = y.view(batch, 2, channels // 2, height, width).transpose(1, 2)
        y = y.reshape(batch, channels, height, width)
        return self.last(x + self.b(y))


@case(
    IMAGE,
    targets={
        "stem.0": "channel 4",
        "stem.0#2": "channel 4",
        "branch.0": "channel 4",
        "last.0": "channel 6",
    },
    form="mixed",
)
class Chunk(Stem):
    def __init__(self) -> None:
        super().__init__(out=6)
        self.branch, self.last = conv_bn(4, 4), conv_bn(8, 6)

    def body(self, x: Tensor) -> Tensor:
        one, other = x.chunk(2, 1)
        return self.last(torch.cat([one, self.branch(other)], 1))


@case(
    IMAGE,
    targets={"stem.0": "channel 3", "stem.0#2": "channel 5", "last.0": "channel 6"},
    form="mixed",
)
class Split(Stem):
    def __init__(self) -> None:
        super().__init__(out=6)
        self.last = conv_bn(8, 6)

    def body(self, x: Tensor) -> Tensor:
        one, other = torch.split(x, [3, 5], 1)
        return self.last(torch.cat([F.gelu(other), one], 1))


@case(
    IMAGE,
    targets={
        "stem.0": "channel 2",
        "stem.0#2": "channel 6",
        "part.0": "channel 6",
        "last.0": "channel 6",
    },
    form="mixed",
)
class Slice(Stem):
    def __init__(self) -> None:
        super().__init__(out=6)
        self.part, self.last = conv_bn(6, 6), conv_bn(8, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([x[:, :2], self.part(x[:, 2:])], 1))


@case((3, 3, 16), targets={"a": "channel 6", "b": "channel 4"})
class Conv1d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 6, 3), nn.Conv1d(6, 4, 3, dilation=2)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.a(x)))).amax(2))


@case((2, 3, 4, 6, 6), targets={"a": "channel 6", "b": "channel 4"})
class Conv3d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv3d(3, 6, 3, padding=1), nn.BatchNorm3d(6)
        self.b, self.head = nn.Conv3d(6, 4, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(F.relu(self.norm(self.a(x))), 2)
        return self.head(F.adaptive_avg_pool3d(F.relu(self.b(x)), 1).flatten(1))


@case(IMAGE, targets={"stem.0": "channel 8", "up": "channel 3", "grouped": "channel 3"})
class ConvTranspose(Stem):
    def __init__(self) -> None:
        super().__init__(out=6)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.depth = nn.ConvTranspose2d(6, 6, 3, groups=6, bias=False)
        self.grouped = nn.ConvTranspose2d(6, 6, 2, groups=2)

    def body(self, x: Tensor) -> Tensor:
        return F.relu(self.grouped(F.relu(self.depth(F.relu(self.up(x))))))


@case(
    IMAGE,
    targets={
        "stem.0": "channel 8",
        "down.0": "channel 10",
        "up": "channel 4",
        "last.0": "channel 6",
    },
)
class UNet(Stem):
    def __init__(self) -> None:
        super().__init__(out=6)
        self.down, self.up = conv_bn(8, 10), nn.ConvTranspose2d(10, 4, 2, 2)
        self.last = conv_bn(12, 6)

    def body(self, x: Tensor) -> Tensor:
        low = self.down(F.avg_pool2d(x, 2))
        same = F.interpolate(F.max_pool2d(x, 2), scale_factor=2, mode="bilinear")
        return self.last(torch.cat([self.up(low), same], 1))


@case(IMAGE, targets={"stem.0": "channel 8", "a": "channel 6"})
class PReLU(Stem):
    def __init__(self) -> None:
        super().__init__(out=6)
        self.each, self.one, self.a = nn.PReLU(8), nn.PReLU(), nn.Conv2d(8, 6, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.one(self.a(self.each(x - 1)))


@case(IMAGE, targets={"stem.0": "channel 3", "a.0": "channel 4"})
class PixelShuffle(Stem):
    def __init__(self) -> None:
        super().__init__(width=12, out=16)
        self.a = conv_bn(3, 4)

    def body(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(self.a(F.pixel_shuffle(x, 2)), 2)


@case(IMAGE, targets={"stem.0": "channel 8", "after.0": "channel 6"})
class UnfoldFold(Stem):
    def __init__(self) -> None:
        super().__init__(out=6)
        self.after = conv_bn(8, 6)

    def body(self, x: Tensor) -> Tensor:
        columns = F.unfold(x, 2, stride=2)
        return self.after(F.fold(columns.relu(), (8, 8), 2, stride=2))


@case(IMAGE, targets={"stem.0": "channel 8", "wide.0": "channel 7", "wide.0#2": "channel 5"})
class PaddedShortcut(Stem):
    """Option A: zero channels before and after those of the shortcut, sizes in attributes."""

    def __init__(self) -> None:
        super().__init__(out=20)
        self.wide = conv_bn(8, 20)
        self.before = 7
        self.after = 5

    def body(self, x: Tensor) -> Tensor:
        return self.wide(x) + F.pad(x, (0, 0, 0, 0, self.before, self.after))


@case(IMAGE, targets={"stem.0": "channel 8", "a.0": "channel 6", "b": "channel 8"})
class CircularPadding(Stem):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular"), nn.ReLU())
        self.b = nn.Conv2d(6, 8, 3, padding="same")

    def body(self, x: Tensor) -> Tensor:
        return F.pad(F.relu(self.b(self.a(x))), (1, 1, 1, 1), mode="reflect")


# ---- normalisation


@case(IMAGE, targets={"stem.0": "channel 2", "a": "channel 3"})
class GroupNorm(Stem):
    def __init__(self) -> None:
        super().__init__(out=6)
        self.norm, self.a, self.after = nn.GroupNorm(4, 8), nn.Conv2d(8, 6, 1), nn.GroupNorm(2, 6)

    def body(self, x: Tensor) -> Tensor:
        return F.relu(self.after(self.a(self.norm(x))))


@case(IMAGE, targets={"stem.0": "channel 8", "a": "channel 6"})
class InstanceNorm(Stem):
    def __init__(self) -> None:
        super().__init__(out=6)
        self.affine = nn.InstanceNorm2d(8, affine=True)
        self.a, self.bare = nn.Conv2d(8, 6, 1), nn.InstanceNorm2d(6)

    def body(self, x: Tensor) -> Tensor:
        return F.relu(self.bare(self.a(self.affine(x)))) ** 2


@case(TOKENS, targets={"embed": "channel 12", "a": "channel 20"})
class LayerNorm(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(12), nn.Linear(12, 20), nn.Linear(20, 12)
        self.bare, self.rms = nn.LayerNorm(12, elementwise_affine=False), nn.RMSNorm(12)

    def body(self, x: Tensor) -> Tensor:
        x = x + self.b(F.gelu(self.a(self.norm(x))))
        return self.rms(x) + self.bare(x)


@case(TOKENS, targets={"embed": "channel 12"})
class HandwrittenNorm(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(12))
        self.bias = nn.Parameter(torch.zeros(12))

    def body(self, x: Tensor) -> Tensor:
        centred = (x - x.mean(-1, keepdim=True)) * self.gain.ne(0)
        power = centred.pow(2).mean(-1, keepdim=True)
        return centred * torch.rsqrt(power + 1e-6) * self.gain + self.bias


# ---- reshaping


@case(IMAGE, targets={"a.0": "channel 6", "b": "channel 7"})
class Flatten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv_bn(3, 6), nn.Linear(6 * 16, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.a(x), 2)
        return self.head(F.relu(self.b(torch.flatten(x, 1))))


@case(IMAGE, targets={"a.0": "channel 6", "b": "channel 7"})
class FlattenChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv_bn(3, 6), nn.Linear(6 * 64, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).permute(0, 2, 3, 1)
        return self.head(F.relu(self.b(x.reshape(x.shape[0], -1))))


@case(IMAGE, targets={"a.0": "channel 6", "b": "channel 7"}, form="mixed")
class WrittenSize(nn.Module):
    """A size that is written down in forward: only the graph form follows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv_bn(3, 6), nn.Linear(6 * 64, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(self.a(x).view(-1, 384))))


@case(IMAGE, targets={"stem.0": "channel 8", "paths.0": "channel 4"}, form="modules")
class SelectiveKernel(Stem):
    def __init__(self) -> None:
        super().__init__(out=4)
        self.paths = nn.ModuleList([nn.Conv2d(8, 4, k, padding=k // 2) for k in (1, 3)])
        self.select = nn.Linear(4, 8)

    def body(self, x: Tensor) -> Tensor:
        both = torch.stack([path(x) for path in self.paths], 1)
        gate = self.select(both.sum(1).mean((2, 3)))
        weight = gate.view(x.shape[0], 2, -1).softmax(1)
        return (both * weight[..., None, None]).sum(1)


@case(IMAGE, targets={"stem.0": "channel 8", "last.0": "channel 6"}, frozen=("gate",))
class SpatialGate(Stem):
    def __init__(self) -> None:
        super().__init__(out=6)
        self.gate, self.last = nn.Conv2d(1, 1, 3, padding=1), conv_bn(8, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.last(x * torch.sigmoid(self.gate(x.sum(1, keepdim=True))))


# ---- attention


class FusedAttention(nn.Module):
    """One projection for query, key and value; every size is an attribute."""

    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.places, self.fused = heads, width // heads, fused
        self.scale = self.places**-0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.places)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        else:
            y = (q @ k.transpose(-2, -1) * self.scale).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, self.heads * self.places))


_FUSED = {
    "embed": "channel 12",
    "attention.qkv.head": "head 3",
    "attention.qkv.head_dim": "head_dim 4",
}


@case(TOKENS, targets=_FUSED, fused=True, name="FusedQkvSdpa")
@case(TOKENS, targets=_FUSED, fused=False, name="FusedQkvSoftmax")
class Fused(Tokens):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(12), FusedAttention(12, 3, fused)

    def body(self, x: Tensor) -> Tensor:
        return x + self.attention(self.norm(x))


@case(
    TOKENS,
    targets={
        "embed": "channel 12",
        "q.head": "head 3",
        "q.head_dim": "head_dim 4",
        "v": "head_dim 2",
    },
    form="mixed",
)
class SplitQkv(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 6)
        self.proj = nn.Linear(6, 12)

    def body(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k = (part(x).view(batch, tokens, 3, 4).transpose(1, 2) for part in (self.q, self.k))
        v = self.v(x).view(batch, tokens, 3, 2).transpose(1, 2)
        y = (q @ k.transpose(-2, -1) / 2).softmax(-1) @ v
        return x + self.proj(y.transpose(1, 2).flatten(2))


@case(
    TOKENS,
    targets={
        "embed": "channel 12",
        "attention.head": "head 3",
        "attention.head_dim": "head_dim 4",
    },
    form="graph",
)
class MultiheadAttention(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)

    def body(self, x: Tensor) -> Tensor:
        return x + self.attention(x, x, x, need_weights=False)[0]


@case(
    TOKENS,
    targets={
        "embed": "channel 12",
        "layer.self_attn.head": "head 3",
        "layer.self_attn.head_dim": "head_dim 4",
        "layer.linear1": "channel 20",
    },
    form="mixed",
)
class TransformerEncoder(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(12, 3, 20, dropout=0.1, batch_first=True)

    def body(self, x: Tensor) -> Tensor:
        return self.layer(x)


@case((2, 8, 8, 12), targets=_FUSED)
class WindowAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(12, 12), FusedAttention(12, 3, fused=True)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        x = torch.roll(self.embed(x), (-2, -2), (1, 2))
        windows = x.view(batch, height // 4, 4, width // 4, 4, x.shape[-1])
        windows = windows.permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, x.shape[-1])
        y = self.attention(windows).view(batch, height // 4, width // 4, 4, 4, -1)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, -1)
        return self.head((x + torch.roll(y, (2, 2), (1, 2))).mean((1, 2)))


@case(TOKENS, targets=_FUSED, form="mixed")
class RelativeBias(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.attention = FusedAttention(12, 3, fused=False)
        self.table = nn.Parameter(torch.zeros(9, 3))
        self.bias = nn.Parameter(torch.zeros(3, 5, 5))
        steps = torch.arange(5)
        self.register_buffer("index", steps[:, None] - steps[None] + 4, persistent=False)

    def body(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        a = self.attention
        q, k, v = a.qkv(x).reshape(batch, tokens, 3, a.heads, a.places).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(5, 5, -1).permute(2, 0, 1) + self.bias
        y = (q @ k.mT * a.scale + bias).softmax(-1) @ v
        return x + a.proj(y.transpose(1, 2).reshape(batch, tokens, a.heads * a.places))


@case(TOKENS, targets=_FUSED, form="mixed")
class CosineAttention(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.attention = FusedAttention(12, 3, fused=False)
        self.scale = nn.Parameter(torch.ones(3, 1, 1))

    def body(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        a = self.attention
        q, k, v = a.qkv(x).reshape(batch, tokens, 3, a.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        y = (scores * self.scale.clamp(max=4).exp()).softmax(-1) @ v
        return x + a.proj(y.transpose(1, 2).reshape(batch, tokens, -1))


@case(TOKENS, targets={**_FUSED, "attention.qkv.head_dim#2": "head_dim 4"}, form="mixed")
class EinsumAttention(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.attention = FusedAttention(12, 3, fused=False)

    def body(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        a = self.attention
        q, k, v = (part.view(batch, tokens, a.heads, a.places) for part in a.qkv(x).chunk(3, -1))
        scores = torch.einsum("bihd,bjhd->bhij", q, k) * a.scale
        y = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v)
        return x + a.proj(y.flatten(2))


@case(TOKENS, targets={"embed": "channel 12", "q": "head_dim 4", "v": "head_dim 4"}, form="mixed")
class GroupedQueries(Tokens):
    """Four heads of queries, two of keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(12, 16), nn.Linear(12, 8), nn.Linear(12, 8)
        self.proj = nn.Linear(16, 12)

    def body(self, x: Tensor) -> Tensor:
        q, k, v = (
            part(x).unflatten(-1, (-1, 4)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, scale=0.5)
        return x + self.proj(y.transpose(1, 2).flatten(2))


@case(TOKENS, targets={"embed": "channel 12", "attention.qkv": "head 3"}, form="mixed")
class ChannelAttention(Tokens):
    """Channels attend to channels: heads may go, places within them may not."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = FusedAttention(12, 3, fused=False)

    def body(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        a = self.attention
        q, k, v = a.qkv(x).reshape(batch, tokens, 3, a.heads, a.places).permute(2, 0, 3, 4, 1)
        y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return x + a.proj(y.permute(0, 3, 1, 2).reshape(batch, tokens, -1))


@case(
    TOKENS,
    (3, 7, 10),
    targets={
        "embed": "channel 8",
        "other": "channel 6",
        "q.head": "head 2",
        "q.head_dim": "head_dim 4",
    },
    form="mixed",
)
class CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.other = nn.Linear(12, 8), nn.Linear(10, 6)
        self.q, self.kv, self.proj = nn.Linear(8, 8), nn.Linear(6, 16), nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = self.embed(x), F.gelu(self.other(y))
        q = self.q(x).view(x.shape[0], -1, 2, 4).transpose(1, 2)
        k, v = self.kv(y).view(y.shape[0], -1, 2, 2, 4).permute(2, 0, 3, 1, 4)
        z = F.scaled_dot_product_attention(q, k, v, scale=0.5).transpose(1, 2)
        return self.head((x + self.proj(z.reshape(x.shape[0], -1, 8))).mean(1))


# ---- gates, mixers, parameters outside modules


@case(TOKENS, targets={"embed": "channel 12", "a": "channel 10"}, form="modules")
class GatedLinear(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 20), nn.Linear(10, 12)

    def body(self, x: Tensor) -> Tensor:
        return x + self.b(F.glu(self.a(x), -1))


@case(TOKENS, targets={"embed": "channel 12", "a": "channel 10"}, form="modules")
class SwiGLU(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 20, bias=False), nn.Linear(10, 12)

    def body(self, x: Tensor) -> Tensor:
        gate, value = self.a(x).chunk(2, -1)
        return x + self.b(F.silu(gate) * value)


@case(
    TOKENS,
    targets={"embed": "channel 12", "mix.0": "channel 7", "up": "channel 9"},
    frozen=("mix.2",),
)
class TokenMixer(Tokens):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(12)
        self.mix = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 5))
        self.scale = nn.Parameter(torch.ones(12))
        self.up, self.down = nn.Linear(12, 9), nn.Linear(9, 12)

    def body(self, x: Tensor) -> Tensor:
        x = x + self.scale * self.mix(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.down(F.gelu(self.up(x)))


@case(TOKENS, targets={"embed": "channel 12", "inner": "channel 6"})
class OwnParameters(Tokens):
    """A class token, positions, a layer scale, and weights that are multiplied by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 12))
        self.positions = nn.Parameter(torch.zeros(1, 6, 12))
        self.inner, self.outer = nn.Parameter(torch.zeros(12, 6)), nn.Parameter(torch.zeros(6, 12))
        self.shift, self.scale = nn.Parameter(torch.zeros(6)), nn.Parameter(torch.ones(12))

    def body(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return x + self.scale * (F.gelu(x @ self.inner + self.shift) @ self.outer)


@case((4, 12), targets={"a": "channel 6", "weight": "channel 7"})
class Addmm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(12, 6), nn.Linear(7, 5)
        self.weight, self.bias = nn.Parameter(torch.zeros(6, 7)), nn.Parameter(torch.zeros(7))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(torch.addmm(self.bias, F.relu(self.a(x)), self.weight)))


@case(IMAGE, targets={"stem.0": "channel 8", "last.0": "channel 6"})
class SharedModule(Stem):
    def __init__(self) -> None:
        super().__init__(out=6)
        self.twice, self.last = conv_bn(8, 8), conv_bn(8, 6)

    def body(self, x: Tensor) -> Tensor:
        return self.last(self.twice(self.twice(x)))


@case((3, 6), targets={"embed": "channel 8", "a": "channel 10"}, tokens=11)
class TiedEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.a, self.b = nn.Linear(8, 10), nn.Linear(10, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(x + self.b(F.gelu(self.a(x))))


@case((3, 6), targets={"embed": "channel 8"}, tokens=11)
class Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 8, padding_idx=0), nn.Linear(8, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens).sum(1))


@case(TOKENS, targets={"embed": "channel 12", "a": "channel 2", "a#2": "channel 4"})
class ComputedBias(Tokens):
    """A bias put together from parts, as in BEiT."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 6, bias=False), nn.Linear(6, 12)
        self.left, self.right = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(4))

    def body(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.a.weight, torch.cat([self.left, self.right]))
        return x + self.b(F.gelu(y))


@case(IMAGE, targets={"stem.0": "channel 8", "b": "channel 6"}, frozen=("before", "conv2d_2"))
class StandardisedConv(Stem):
    """Weights of zero mean and unit variance: what is computed from weights stays whole."""

    def __init__(self) -> None:
        super().__init__(width=8, out=6)
        self.before, self.a, self.b = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 5, 3), nn.Conv2d(5, 6, 1)

    def body(self, x: Tensor) -> Tensor:
        weight = self.a.weight
        weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std(
            (1, 2, 3), keepdim=True
        )
        x = F.conv2d(F.relu(self.before(x)), weight, self.a.bias)
        return F.relu(self.b(F.relu(x)))


# ---- what changes no channels


@case(TOKENS, targets={"embed": "channel 12"})
class CastMask(Tokens):
    """A mask of one channel takes the dtype of the data."""

    def body(self, x: Tensor) -> Tensor:
        return F.relu(x) * (x.mean(2, keepdim=True) > -9).type_as(x)


@case(IMAGE, targets={"stem.0": "channel 8"})
class DataLike(Stem):
    """New data of the shape of others."""

    def body(self, x: Tensor) -> Tensor:
        return F.relu(torch.zeros_like(x) + x)


@case((3, 6), targets={"embed": "channel 8"}, frozen=("hidden",), tokens=11)
class TiedHidden(nn.Module):
    """A table that a hidden layer shares: its rows are tokens, whatever else they are."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        self.hidden.weight, self.head = self.embed.weight, nn.Linear(11, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(torch.tanh(self.embed(tokens)))))


# ---- sizes that are counted from the end, or not written at all


@case(IMAGE, targets={"a": "channel 8", "b": "channel 4"}, form="mixed")
class FromTheEnd(nn.Module):
    """Negative ends behind channels that stay: the input's own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.c, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.a(x)], 1)
        return self.head((self.b(x[:, -8:]) * self.c(x[:, :-8])).mean((2, 3)))


# ---- another dimension than channels is pruned, and mixed


@case((3, 3, 20), targets={"a": "channel 16", "c": "channel 8"}, frozen=("l",))
class ConvolvedLength(nn.Module):
    """A convolution and pooling over features of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.l, self.c = nn.Conv1d(3, 16, 3), nn.Linear(18, 12), nn.Conv1d(16, 8, 3)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.c(F.gelu(self.l(F.gelu(self.a(x))))))
        return self.head(F.avg_pool1d(x, 2)).sum(1)


@case((3, 3, 20), targets={"a": "channel 16"}, frozen=("l",))
class PooledLength(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.l = nn.Conv1d(3, 16, 3), nn.Linear(18, 12)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.interpolate(F.gelu(self.l(F.gelu(self.a(x)))), scale_factor=2.0)).sum(1)


@case(
    TOKENS,
    targets={"embed": "channel 12", "qkv": "head 3"},
    form="mixed",
)
class ConvolvedHeads(Tokens):
    """Attention whose heads are the channels of a depthwise convolution over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)
        self.local = nn.Conv2d(3, 3, (3, 1), padding=(1, 0), groups=3)

    def body(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, 3, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v) + self.local(v)
        return x + self.out(y.transpose(1, 2).reshape(b, n, 12))


# ---- parameters that meet data of their own kind


@case(
    TOKENS,
    targets={"embed": "channel 12", "q.head": "head 3", "q.head_dim": "head_dim 4"},
    form="mixed",
)
class WeightsOfHeads(Tokens):
    """A matrix for every head, in one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.out = nn.Linear(12, 12), nn.Linear(15, 12)
        self.mixing = nn.Parameter(torch.randn(3, 4, 5))

    def body(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        y = torch.tanh(self.q(x).view(b, n, 3, 4).transpose(1, 2) @ self.mixing)
        return x + self.out(y.transpose(1, 2).reshape(b, n, 15))


@case(
    TOKENS,
    targets={"q.head": "head 3", "q.head_dim": "head_dim 4", "v": "head_dim 4"},
    form="graph",
)
class PositionsOfInputs(nn.Module):
    """Positions are added to what is read, and attention follows."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 5, 12))
        self.q, self.k, self.v = (nn.Linear(12, 12) for _ in range(3))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        x = x + self.position
        q, k, v = (layer(x).view(b, n, 3, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.head(y.transpose(1, 2).reshape(b, n, 12)).mean(1)


@case(IMAGE, targets={"stem.0": "channel 8"})
class Scaled(Stem):
    """Scales by a parameter without dimensions, as CLIP does, and adds one to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.shift)

    def body(self, x: Tensor) -> Tensor:
        return x * self.scale.exp()
