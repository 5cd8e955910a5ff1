"""The attention and feed-forward blocks that readout heads are built from.

Axes: `b` batch, `n` tokens, `q` queries, `c` feature channels, `p` readout width, `m` hidden
width, `heads` and `d` head width; features have frames `t`, rows `h` and columns `w`, and `s`
frames once they are resized in time.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from probe_readouts.time import resize_time, temporal_matrix

NORM_EPS = 1e-6
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
    """Linear, GELU (tanh form), Linear.

    Args:
        width: channels in.
        hidden_width: channels between the two layers.
        out_width: channels out; None for as many as come in.
    """

    def __init__(self, width: int, hidden_width: int, out_width: int | None = None) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden_width)
        self.activation = nn.GELU(approximate="tanh")
        self.project = nn.Linear(hidden_width, width if out_width is None else out_width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights from torch's default generator."""
        init_linear(self.expand)
        init_linear(self.project)

    def forward(self, x: Float[Tensor, "*b p"]) -> Float[Tensor, "*b k"]:
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
        check_heads(num_heads, "width", width)
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
        query = rearrange(self.query, "(heads d) -> heads d", heads=self.num_heads)
        query = query / math.sqrt(query.shape[-1])
        key = rearrange(self.key.weight, "(heads d) c -> heads d c", heads=self.num_heads)
        key_bias = rearrange(self.key.bias, "(heads d) -> heads d", heads=self.num_heads)
        value = rearrange(self.value.weight, "(heads d) c -> heads d c", heads=self.num_heads)

        # The key bias shifts all scores of a head alike, so the softmax removes it. It stays
        # because the published readout has it: it is counted, saved and given a (zero) gradient.
        shift = einsum(query, key_bias, "heads d, heads d -> heads")
        folded = einsum(query, key, "heads d, heads d c -> heads c")
        scores = einsum(tokens, folded, "b n c, heads c -> b heads n")
        weights = (scores + rearrange(shift, "heads -> heads 1")).softmax(dim=-1)
        pooled = einsum(weights, tokens, "b heads n, b n c -> b heads c")
        attended = einsum(pooled, value, "b heads c, heads d c -> b heads d")
        return rearrange(attended, "b heads d -> b (heads d)") + self.value.bias


class KeysValues(NamedTuple):
    """What queries attend to. One frame of it is `KeysValues(keys[s], values[s])`."""

    keys: Float[Tensor, "*s b heads n d"]
    """Keys of unit root mean square; their learned scale is applied to the queries."""
    values: Float[Tensor, "*s b heads n d"]
    """Values."""


class CrossAttentionBlock(nn.Module):
    """Pre-norm block in which queries attend to features, and not to each other.

    LayerNorm without bias, multi-head cross-attention with RMSNorm on queries and keys, LayerNorm
    without bias, MLP; both parts are residual. Keys and values are linear maps without bias of the
    features as they come.

    Keys and values do not depend on the queries: `project` makes them for all frames at once.
    Resizing in time is linear too, so when frames are added it is done after the projection, on
    fewer frames' work: 5 latent frames are projected for 17 frames of video.

    Reference:
        Sajjadi et al., Scene Representation Transformer (CVPR 2022), Sec. 3.2 (the decoder);
        Dehghani et al., Scaling Vision Transformers to 22 B Parameters (ICML 2023), Sec. 2 (norms
        of queries and keys).

    Args:
        width: channels of the queries.
        feature_dim: channels of the features.
        num_heads: heads, a divisor of `qkv_width`.
        qkv_width: channels of queries, keys and values inside the attention.
        hidden_width: channels inside the MLP.

    Raises:
        ValueError: `num_heads` does not divide `qkv_width`.
    """

    def __init__(
        self, width: int, feature_dim: int, *, num_heads: int, qkv_width: int, hidden_width: int
    ) -> None:
        super().__init__()
        check_heads(num_heads, "qkv_width", qkv_width)
        self.num_heads = num_heads
        self.query_norm = nn.LayerNorm(width, eps=NORM_EPS, bias=False)
        self.query = nn.Linear(width, qkv_width, bias=False)
        self.key = nn.Linear(feature_dim, qkv_width, bias=False)
        self.value = nn.Linear(feature_dim, qkv_width, bias=False)
        self.query_scale = nn.Parameter(torch.empty(qkv_width // num_heads))
        self.key_scale = nn.Parameter(torch.empty(qkv_width // num_heads))
        self.output = nn.Linear(qkv_width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=NORM_EPS, bias=False)
        self.mlp = MLP(width, hidden_width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights from torch's default generator; norms start as the identity."""
        for linear in (self.query, self.key, self.value, self.output):
            init_linear(linear)
        for scale in (self.query_scale, self.key_scale):
            nn.init.ones_(scale)
        self.query_norm.reset_parameters()
        self.mlp_norm.reset_parameters()
        self.mlp.reset_parameters()

    def project(
        self,
        features: Float[Tensor, "b t h w c"],
        time_matrix: Float[Tensor, "s t"] | None = None,
    ) -> KeysValues:
        """Compute the keys and values of all frames.

        Args:
            features: residual stream of the backbone, on its grid.
            time_matrix: weights of the features' frames in the frames wanted, see
                `probe_readouts.temporal_matrix`; None keeps the frames.
        """
        keys = self._heads(self.key(features), time_matrix)
        values = self._heads(self.value(features), time_matrix)
        return KeysValues(unit_rms(keys), values)

    def _heads(self, x: Tensor, time_matrix: Tensor | None) -> Tensor:
        """Split channels into heads, one frame after another in memory, and resize in time."""
        x = rearrange(x, "b t h w (heads d) -> t b heads (h w) d", heads=self.num_heads)
        if time_matrix is None:
            return x.contiguous()
        return einsum(time_matrix.to(x), x, "s t, t b heads n d -> s b heads n d")

    def forward(
        self, x: Float[Tensor, "#b q p"], attended_to: KeysValues
    ) -> Float[Tensor, "b q p"]:
        """Update the queries.

        Args:
            x: queries; one batch entry is shared by all entries of the keys.
            attended_to: keys and values of one frame.
        """
        keys, values = attended_to
        queries = self.query(self.query_norm(x))
        queries = rearrange(queries, "b q (heads d) -> b heads q d", heads=self.num_heads)
        queries = unit_rms(queries) * (self.query_scale * self.key_scale)
        queries = queries.to(keys).expand(len(keys), -1, -1, -1)
        attended = attend(queries, keys, values)
        x = x + self.output(rearrange(attended, "b heads q d -> b q (heads d)"))
        return x + self.mlp(self.mlp_norm(x))


class CrossAttentionBlocks(nn.ModuleList):
    """Cross-attention blocks one after another, all attending to the same features.

    Args:
        num_blocks: how many.
        width: channels of the queries.
        feature_dim: channels of the features.
        num_heads: heads of each, a divisor of `qkv_width`.
        qkv_width: channels of queries, keys and values.
        hidden_width: channels inside the MLP of each.

    Raises:
        ValueError: `num_heads` does not divide `qkv_width`.
    """

    def __init__(
        self,
        num_blocks: int,
        width: int,
        feature_dim: int,
        *,
        num_heads: int,
        qkv_width: int,
        hidden_width: int,
    ) -> None:
        super().__init__(
            CrossAttentionBlock(
                width,
                feature_dim,
                num_heads=num_heads,
                qkv_width=qkv_width,
                hidden_width=hidden_width,
            )
            for _ in range(num_blocks)
        )

    def __iter__(self) -> Iterator[CrossAttentionBlock]:
        return cast(Iterator[CrossAttentionBlock], super().__iter__())

    def reset_parameters(self) -> None:
        """Draw new weights from torch's default generator."""
        for block in self:
            block.reset_parameters()

    def project(
        self, features: Float[Tensor, "b t h w c"], num_frames: int, time_method: str
    ) -> list[KeysValues]:
        """Compute the keys and values of `num_frames` frames, for every block.

        Raises:
            ValueError: frames that the time method cannot make.
        """
        num_given = features.shape[1]
        if num_frames < num_given:
            features = resize_time(features, num_frames, time_method)
        fewer = num_frames > num_given
        matrix = temporal_matrix(num_given, num_frames, time_method) if fewer else None
        return [block.project(features, matrix) for block in self]

    def forward(
        self, x: Float[Tensor, "#b q p"], attended_to: Sequence[KeysValues]
    ) -> Float[Tensor, "b q p"]:
        """Update the queries by every block.

        Args:
            x: queries; one batch entry is shared by all entries of the keys.
            attended_to: keys and values of one frame, for every block.
        """
        for block, frame in zip(self, attended_to, strict=True):
            x = block(x, frame)
        return x


def attend(
    queries: Float[Tensor, "b heads q d"],
    keys: Float[Tensor, "b heads n d"],
    values: Float[Tensor, "b heads n d"],
) -> Float[Tensor, "b heads q d"]:
    """Compute softmax attention, scaled by 1 / sqrt(d).

    Few queries on a CPU are computed step by step, which is faster there than the fused kernel:
    their scores are small, and the fused kernel computes them once more in the backward pass.

    Reference:
        Vaswani et al., Attention Is All You Need (NeurIPS 2017), Eq. 1.
    """
    if queries.device.type != "cpu" or queries.shape[-2] > keys.shape[-2]:
        return F.scaled_dot_product_attention(queries, keys, values)
    scores = (queries / math.sqrt(queries.shape[-1])) @ keys.mT
    return scores.softmax(dim=-1) @ values


def unit_rms(x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """Divide vectors by their root mean square (eps 1e-6 on the mean square).

    The root mean square is computed in float32 at least.

    Reference:
        Zhang and Sennrich, Root Mean Square Layer Normalization (NeurIPS 2019), Eq. 4.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
    return (x * (norm.square() / x.shape[-1] + NORM_EPS).rsqrt()).to(x.dtype)


def check_heads(num_heads: int, name: str, width: int) -> None:
    """Refuse a number of heads that does not divide the width called `name`."""
    if num_heads < 1 or width % num_heads:
        divisors = [n for n in range(1, width + 1) if width % n == 0]
        raise ValueError(
            f"num_heads {num_heads} must divide {name} {width}; pick one of {divisors}"
        )
