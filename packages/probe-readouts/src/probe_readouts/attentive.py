"""Attentive readout: one learned query over space and time gives classes, actions or a pose.

Axes: `b` batch, `t h w` grid of the features (latent or resized frames, rows, columns),
`c` feature channels, `k` outputs.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from probe_readouts.attention import (
    EMBEDDING_STD,
    LAYER_NORM_EPS,
    MLP,
    AttentionPooling,
    init_linear,
)

_HEAD_WIDTH = 64
_MLP_RATIO = 4


class AttentiveReadout(nn.Module):
    """Reads one vector of outputs per clip from a grid of frozen features.

    LayerNorm, learned time embedding, attention pooling with one learned query, a residual MLP
    and a linear layer to the outputs. The features are the raw residual stream of the backbone.
    A clip may have any number of frames from 1 to `num_frames`, an image has 1: the first rows
    of the time table are used.

    Features are refused when they hold NaN or infinity. Such a value reaches every output of its
    sample, so the test looks at the few outputs, and at the features only to word the error. It
    makes a GPU wait for the result, and it is left out of compiled graphs and on the meta device.

    Reference:
        Velez et al., From Image to Video (2025), Sec. 3.4 and Table 5, whose parameter counts
        this module has; Carreira et al., Scaling 4D Representations (2024), Sec. 3.

    Args:
        feature_dim: channels of the features.
        num_outputs: classes, or 12 for a 3x4 pose.
        width: channels of the query; the published readouts use 768, 1024 (Kinetics) and 256
            (pose).
        num_heads: heads, a divisor of `width`; None makes heads of 64 channels, that is 12, 16
            and 4 for the widths above. The study does not publish its choice.
        num_frames: rows of the time table; 17 for video, 1 for features without a time axis.

    Raises:
        ValueError: a size is not positive, or the heads do not divide the width.
    """

    def __init__(
        self,
        feature_dim: int,
        num_outputs: int,
        *,
        width: int = 768,
        num_heads: int | None = None,
        num_frames: int = 17,
    ) -> None:
        super().__init__()
        sizes = {
            "feature_dim": feature_dim,
            "num_outputs": num_outputs,
            "width": width,
            "num_frames": num_frames,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} {size} must be at least 1")
        if num_heads is None:
            if width % _HEAD_WIDTH:
                raise ValueError(
                    f"width {width} is not a multiple of {_HEAD_WIDTH}, so the number of heads "
                    "has no default; pass num_heads, a divisor of width"
                )
            num_heads = width // _HEAD_WIDTH
        self.feature_dim = feature_dim
        self.num_outputs = num_outputs
        self.num_frames = num_frames
        self.feature_norm = nn.LayerNorm(feature_dim, eps=LAYER_NORM_EPS)
        self.time_embedding = nn.Parameter(torch.empty(num_frames, feature_dim))
        self.pooling = AttentionPooling(feature_dim, width, num_heads)
        self.attention_output = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = MLP(width, _MLP_RATIO * width)
        self.output = nn.Linear(width, num_outputs)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights from torch's default generator.

        Linear weights are LeCun-normal (truncated, as in Flax), biases zero, the query and the
        time embedding N(0, 0.02).
        """
        nn.init.normal_(self.time_embedding, std=EMBEDDING_STD)
        self.feature_norm.reset_parameters()
        self.mlp_norm.reset_parameters()
        self.pooling.reset_parameters()
        self.mlp.reset_parameters()
        init_linear(self.attention_output)
        init_linear(self.output)

    def forward(self, features: Float[Tensor, "b t h w c"]) -> Float[Tensor, "b k"]:
        """Compute the outputs (class logits, or a pose row by row) of every clip.

        Args:
            features: residual stream of the backbone, on its grid.

        Returns:
            Unnormalised outputs, one row per clip.

        Raises:
            ValueError: wrong rank, width or dtype, too many frames, an empty grid, or features
                that are not finite.
        """
        self._check(features)
        num_frames = features.shape[1]
        tokens = self.feature_norm(features)
        tokens = tokens + rearrange(self.time_embedding[:num_frames], "t c -> t 1 1 c")
        attended = self.pooling(rearrange(tokens, "b t h w c -> b (t h w) c"))
        token = self.pooling.query + self.attention_output(attended)
        token = token + self.mlp(self.mlp_norm(token))
        outputs = self.output(token)
        if not torch.compiler.is_compiling() and not outputs.is_meta:
            _check_finite(features, outputs)
        return outputs

    def _check(self, features: Tensor) -> None:
        """Refuse features of the wrong shape or dtype."""
        if features.ndim != 5:
            raise ValueError(
                f"features of shape {tuple(features.shape)} must have five axes (b, t, h, w, c); "
                "give an image one frame, t = 1"
            )
        _, num_frames, height, width, channels = features.shape
        if channels != self.feature_dim:
            raise ValueError(
                f"features have {channels} channels but the readout was built for feature_dim "
                f"{self.feature_dim}; build it with feature_dim={channels}, or pass channels last"
            )
        if num_frames > self.num_frames:
            raise ValueError(
                f"features have {num_frames} frames but the time table has {self.num_frames}; "
                f"build the readout with num_frames={num_frames} or resize the features in time"
            )
        if num_frames * height * width == 0:
            raise ValueError(
                f"features of shape {tuple(features.shape)} have an empty grid; t, h and w must "
                "be at least 1"
            )
        weight_dtype = self.feature_norm.weight.dtype
        autocast = torch.is_autocast_enabled(features.device.type)
        if features.dtype != weight_dtype and not (autocast and features.is_floating_point()):
            raise ValueError(
                f"features are {features.dtype} but the readout's weights are {weight_dtype}; "
                "convert one of them, or call the readout under torch.autocast"
            )


def _check_finite(features: Tensor, outputs: Tensor) -> None:
    """Raise if NaN or infinity in the features is why outputs are not finite."""
    if bool(outputs.isfinite().all()):
        return
    finite = features.isfinite()
    if bool(finite.all()):
        return
    bad = int((~finite).sum())
    samples = (~finite).flatten(1).any(dim=1).nonzero().flatten().tolist()
    raise ValueError(
        f"features hold {bad} values that are NaN or infinite, in samples {samples} of the "
        "batch; readouts need finite features: check the backbone's weights, input and precision"
    )
