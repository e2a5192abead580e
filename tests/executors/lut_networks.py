"""Small networks whose operators are tabulated."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """A residual block with a depthwise convolution, pooling and a linear layer."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.expand = nn.Conv2d(width, 2 * width, 1)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.project = nn.Conv2d(2 * width, width, 1)
        self.act = nn.ReLU6(inplace=True)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        y = self.project(self.act(self.depthwise(F.silu(self.expand(x)))))
        x = F.max_pool2d(F.relu(x + y), 2)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Attention(nn.Module):
    """One block of self-attention over tokens; sizes are written out in its forward."""

    def __init__(self, width: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        batch, tokens, _ = x.shape
        parts = self.qkv(self.norm(x)).reshape(batch, tokens, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).reshape(batch, tokens, -1))
        return self.head(x.mean(1))


class ByHand(nn.Module):
    """Attention as people write it: a mask of minus infinity, a learned scalar first, einsum."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.out = nn.Linear(width, width)
        self.head = nn.Linear(width, 5)
        self.register_buffer("mask", torch.tril(torch.ones(4, 4)).view(1, 1, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2).contiguous()
        batch, tokens, width = x.shape
        q, k, v = (
            layer(x).view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = (q @ k.transpose(-2, -1)).masked_fill(self.mask == 0, float("-inf"))
        y = torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)
        y = y.transpose(1, 2).reshape(batch, tokens, width)
        return self.head((x + self.scale.exp() * self.out(y)).mean(1))


class Concatenation(nn.Module):
    """Two branches side by side, one of them strided."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 8, 3, 2, 1)
        self.right = nn.Conv2d(3, 12, 1)
        self.both = nn.Conv2d(20, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x), self.right(x)[:, :, ::2, ::2]], 1)
        return self.head(self.both(x).relu().mean((2, 3)))


class Upsampling(nn.Module):
    """Transposed convolutions, one of them in groups, and one in three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 12, 3, 2, 1)
        self.up = nn.ConvTranspose2d(12, 8, 3, 2, 1, output_padding=1)
        self.grouped = nn.ConvTranspose2d(8, 8, 2, groups=4, bias=False)
        self.deep = nn.Conv3d(8, 6, (1, 2, 3), dilation=(1, 2, 1))
        self.rise = nn.ConvTranspose3d(6, 4, 2, 2)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.up(F.relu(self.down(x))).relu())
        x = self.rise(self.deep(x[:, :, :8, :8].unflatten(2, (2, 4))).relu())
        return self.head(x.mean((2, 3, 4)))


class Fickle(nn.Module):
    """Runs another operator once it is narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 1)
        self.second = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.first.out_channels < 12:
            x = F.relu(x)
        return self.head(self.second(x).mean((2, 3)))


NETWORKS = {
    "residual": Residual,
    "attention": Attention,
    "concatenation": Concatenation,
    "by hand": ByHand,
    "upsampling": Upsampling,
}
EXAMPLE = torch.zeros(2, 3, 8, 8)
