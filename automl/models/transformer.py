"""Parts of transformers that the encoder, the decoder and the vision transformer share.

The number of heads is the only size written down: heads of any width follow from the projections,
so that queries and values can be pruned apart. The scale is fixed at the dense width: narrower
heads must not change the temperature of what is left.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head self-attention with separate projections for query, key and value."""

    def __init__(self, dim: int, num_heads: int) -> None:
        """Builds the layers.

        Args:
            dim: Width of a token.
            num_heads: Heads; must divide ``dim``.
        """
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) to the same."""
        q, k, v = (self._heads(part(x)) for part in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        """(batch, tokens, heads * width) to (batch, heads, tokens, width)."""
        return x.reshape(*x.shape[:2], self.num_heads, -1).transpose(1, 2)


class FusedAttention(nn.Module):
    """The same with one projection for all three; ``causal`` looks at no later token."""

    def __init__(self, dim: int, num_heads: int, causal: bool = False) -> None:
        """Builds the layers.

        Args:
            dim: Width of a token.
            num_heads: Heads; must divide ``dim``.
            causal: Whether a token sees itself and those before it alone.
        """
        super().__init__()
        self.num_heads = num_heads
        self.causal = causal
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) to the same."""
        qkv: Tensor = self.qkv(x)
        qkv = qkv.reshape(*x.shape[:2], 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (batch, heads, tokens, width)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=self.scale)
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, dim: int, hidden: int) -> None:
        """Builds the layers.

        Args:
            dim: Width of a token.
            hidden: Width of the hidden layer.
        """
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) to the same."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class PreNormBlock(nn.Module):
    """Attention and MLP, each behind a LayerNorm and added to its input."""

    def __init__(self, dim: int, num_heads: int, hidden: int, causal: bool = False) -> None:
        """Builds the layers.

        Args:
            dim: Width of a token.
            num_heads: Attention heads.
            hidden: Width of the MLP's hidden layer.
            causal: Whether a token sees itself and those before it alone.
        """
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = FusedAttention(dim, num_heads, causal)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, dim) to the same."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def require_heads(owner: str, dim: int, num_heads: int) -> None:
    """Checks that heads divide the width.

    Raises:
        ValueError: They do not.
    """
    if dim % num_heads:
        raise ValueError(f"{owner}.num_heads must divide dim {dim}, got {num_heads}")


def initialise(module: nn.Module) -> None:
    """Normal, of a standard deviation that at a width of 768 is BERT's 0.02; no biases."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02 * (768 / module.weight.shape[1]) ** 0.5)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
