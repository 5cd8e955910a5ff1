"""Attentive readout: one learned query over space and time gives classes, actions or a pose.

Axes: `b` batch, `t h w` grid of the features (latent or resized frames, rows, columns),
`c` feature channels, `k` outputs.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from probe_readouts.attention import EMBEDDING_STD, MLP, NORM_EPS, AttentionPooling, init_linear
from probe_readouts.readout import Readout
from probe_readouts.time import resize_time

_HEAD_WIDTH = 64
_MLP_RATIO = 4


class AttentiveReadout(Readout):
    """Reads one vector of outputs per clip from a grid of frozen features.

    LayerNorm, learned time embedding, attention pooling with one learned query, a residual MLP
    and a linear layer to the outputs. A clip may have any number of frames from 1 to
    `num_frames`, an image has 1: the first rows of the time table are used.

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
        time_method: how features are resized in time, see `probe_readouts.temporal_matrix`.

    Raises:
        ValueError: a size is not positive, the heads do not divide the width, or the time method
            is unknown.
    """

    def __init__(
        self,
        feature_dim: int,
        num_outputs: int,
        *,
        width: int = 768,
        num_heads: int | None = None,
        num_frames: int = 17,
        time_method: str = "paper",
    ) -> None:
        sizes = {"num_outputs": num_outputs, "width": width, "num_frames": num_frames}
        super().__init__(feature_dim, time_method, sizes, {"num_heads": num_heads})
        if num_heads is None:
            if width % _HEAD_WIDTH:
                raise ValueError(
                    f"width {width} is not a multiple of {_HEAD_WIDTH}, so the number of heads "
                    "has no default; pass num_heads, a divisor of width"
                )
            num_heads = width // _HEAD_WIDTH
        self.num_outputs = num_outputs
        self.num_frames = num_frames
        self.feature_norm = nn.LayerNorm(feature_dim, eps=NORM_EPS)
        self.time_embedding = nn.Parameter(torch.empty(num_frames, feature_dim))
        self.pooling = AttentionPooling(feature_dim, width, num_heads)
        self.attention_output = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=NORM_EPS)
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

    def forward(
        self, features: Float[Tensor, "b t h w c"], num_frames: int | None = None
    ) -> Float[Tensor, "b k"]:
        """Compute the outputs (class logits, or a pose row by row) of every clip.

        Args:
            features: residual stream of the backbone, on its grid.
            num_frames: frames to resize the features to in time; None keeps those they have.

        Returns:
            Unnormalised outputs, one row per clip.

        Raises:
            ValueError: wrong rank, width or dtype, too many frames, an empty grid, features that
                are not finite, or frames that the time method cannot make.
        """
        self._check_features(features)
        resized = (
            features if num_frames is None else resize_time(features, num_frames, self.time_method)
        )
        num_frames = resized.shape[1]
        if num_frames > self.num_frames:
            raise ValueError(
                f"features have {num_frames} frames but the time table has {self.num_frames}; "
                f"build the readout with num_frames={num_frames} or resize the features in time: "
                f"readout(features, num_frames={self.num_frames})"
            )
        tokens = self.feature_norm(resized)
        tokens = tokens + rearrange(self.time_embedding[:num_frames], "t c -> t 1 1 c")
        attended = self.pooling(rearrange(tokens, "b t h w c -> b (t h w) c"))
        token = self.pooling.query + self.attention_output(attended)
        token = token + self.mlp(self.mlp_norm(token))
        outputs = self._read(self.output, token)
        self._check_finite(features, outputs)
        return outputs
