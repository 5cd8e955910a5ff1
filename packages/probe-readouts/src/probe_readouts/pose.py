"""Pose readout: the camera's motion from the first to the last frame of a clip.

Axes: `b` batch, `t h w` grid of the features, `c` feature channels.
"""

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from probe_readouts.attentive import AttentiveReadout
from probe_readouts.readout import Readout
from probe_readouts.time import temporal_matrix


class PoseReadout(Readout):
    """Reads the relative pose [R | t] of the last frame from the features of first and last.

    The attentive readout on both frames' features side by side on channels, as one time step. The
    12 outputs are the rows of a 3x4 matrix. Its left part is not a rotation: training compares it
    as it is, and `probe_readouts.nearest_rigid` makes it one for the metric.

    Reference:
        Velez et al., From Image to Video (2025), App. D.4 and Table 6.

    Args:
        feature_dim: channels of the features, of one frame.
        width: channels of the query.
        num_heads: heads, a divisor of `width`; None makes heads of 64 channels.
        time_method: how features are resized in time, see `probe_readouts.temporal_matrix`.

    Raises:
        ValueError: a size is not positive, the heads do not divide the width, or the time method
            is unknown.
    """

    def __init__(
        self,
        feature_dim: int,
        *,
        width: int = 256,
        num_heads: int | None = None,
        time_method: str = "paper",
    ) -> None:
        super().__init__(feature_dim, time_method, {"width": width}, {"num_heads": num_heads})
        self.attentive = AttentiveReadout(
            2 * feature_dim, 12, width=width, num_heads=num_heads, num_frames=1
        )

    def reset_parameters(self) -> None:
        """Draw new weights from torch's default generator, as `AttentiveReadout` does."""
        self.attentive.reset_parameters()

    def forward(
        self, features: Float[Tensor, "b t h w c"], num_frames: int | None = None
    ) -> Float[Tensor, "b 3 4"]:
        """Compute the pose matrix of every clip.

        Args:
            features: residual stream of the backbone, on its grid.
            num_frames: frames of the clip, when the features have fewer or more: first and last
                are those of the features resized in time. None takes the features' own.

        Returns:
            [R | t], last frame from first, world-to-camera conventions of
            `probe_readouts.geometry`, translation in metres; R is not yet a rotation.

        Raises:
            ValueError: wrong rank, width or dtype, an empty grid, features that are not finite,
                or frames that the time method cannot make.
        """
        self._check_features(features)
        num_frames = self._num_frames(features, num_frames)
        if num_frames == features.shape[1]:
            ends = torch.stack([features[:, 0], features[:, -1]], dim=1)
        else:
            rows = temporal_matrix(features.shape[1], num_frames, self.time_method)[[0, -1]]
            ends = einsum(rows.to(features), features, "s t, b t h w c -> b s h w c")
        outputs = self.attentive(rearrange(ends, "b s h w c -> b 1 h w (s c)"))
        return rearrange(outputs, "b (row column) -> b row column", row=3)
