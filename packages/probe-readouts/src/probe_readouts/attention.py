"""Attention pooling and the feed-forward block that readout heads are built from.

Axes: `b` batch, `n` tokens, `c` feature channels, `p` readout width, `m` hidden width,
`h` heads, `d` head width (`p = h d`).
"""

import math

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-6
EMBEDDING_STD = 0.02

# Standard deviation of a unit normal that is cut off at +-2.
_TRUNCATED_STD = 0.87962566103423978


def init_linear(linear: nn.Linear) -> None:
    """Set a linear layer to LeCun-normal weights and a zero bias, in place.

    The weights are drawn as Flax draws them: a normal that is truncated at two standard
    deviations and widened so that the variance after truncation is 1 / fan-in.

    Reference:
        LeCun et al., Efficient BackProp (1998), Sec. 4.6; `flax.linen.Dense` default.
    """
    std = 1.0 / (math.sqrt(linear.in_features) * _TRUNCATED_STD)
    nn.init.trunc_normal_(linear.weight, std=std, a=-2.0 * std, b=2.0 * std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


class MLP(nn.Module):
    """Linear, GELU (tanh form), Linear back to the input width.

    Args:
        width: channels in and out.
        hidden_width: channels between the two layers.
    """

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden_width)
        self.activation = nn.GELU(approximate="tanh")
        self.project = nn.Linear(hidden_width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights from torch's default generator."""
        init_linear(self.expand)
        init_linear(self.project)

    def forward(self, x: Float[Tensor, "*b p"]) -> Float[Tensor, "*b p"]:
        return self.project(self.activation(self.expand(x)))


class AttentionPooling(nn.Module):
    """Multi-head attention of one learned query over all tokens.

    Keys and values are linear maps of the tokens with bias; the query is used directly, without
    a projection, and the scale is 1 / sqrt(head width).

    There is one query for all samples, so the maps commute with the sum over tokens: the query is
    carried back through the key map to one score vector of `c` channels per head, and the value
    map is applied to the pooled tokens. The result is that of ordinary attention up to rounding,
    at 1 / (head width) of its multiplications, and no keys or values are kept for the backward
    pass.

    Reference:
        Lee et al., Set Transformer (ICML 2019), Sec. 3.2; Vaswani et al., Attention Is All You
        Need (NeurIPS 2017), Eq. 1.

    Args:
        feature_dim: channels of the tokens.
        width: channels of the query, the keys and the values.
        num_heads: heads; divides `width`. It does not change the parameter count.

    Raises:
        ValueError: `num_heads` does not divide `width`.
    """

    def __init__(self, feature_dim: int, width: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or width % num_heads:
            divisors = [n for n in range(1, width + 1) if width % n == 0]
            raise ValueError(
                f"num_heads {num_heads} must divide width {width}; pick one of {divisors}"
            )
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.empty(width))
        self.key = nn.Linear(feature_dim, width)
        self.value = nn.Linear(feature_dim, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights from torch's default generator."""
        nn.init.normal_(self.query, std=EMBEDDING_STD)
        init_linear(self.key)
        init_linear(self.value)

    def forward(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b p"]:
        query = rearrange(self.query, "(h d) -> h d", h=self.num_heads)
        query = query / math.sqrt(query.shape[-1])
        key = rearrange(self.key.weight, "(h d) c -> h d c", h=self.num_heads)
        key_bias = rearrange(self.key.bias, "(h d) -> h d", h=self.num_heads)
        value = rearrange(self.value.weight, "(h d) c -> h d c", h=self.num_heads)

        # The key bias shifts all scores of a head alike, so the softmax removes it. It stays
        # because the published readout has it: it is counted, saved and given a (zero) gradient.
        shift = rearrange(einsum(query, key_bias, "h d, h d -> h"), "h -> h 1")
        scores = einsum(tokens, einsum(query, key, "h d, h d c -> h c"), "b n c, h c -> b h n")
        weights = (scores + shift).softmax(dim=-1)
        pooled = einsum(weights, tokens, "b h n, b n c -> b h c")
        attended = rearrange(einsum(pooled, value, "b h c, h d c -> b h d"), "b h d -> b (h d)")
        return attended + self.value.bias
