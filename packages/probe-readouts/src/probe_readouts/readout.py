"""What every readout has: its features, how they are resized in time, and what rebuilds it.

Axes: `b` batch, `t h w` grid of the features (latent or resized frames, rows, columns),
`c` feature channels.
"""

from typing import Any

import torch
from torch import Tensor, nn

from probe_readouts.time import TIME_METHODS


class Readout(nn.Module):
    """A trainable head on the frozen features of a backbone.

    Features are the raw residual stream of the backbone on its grid, `b t h w c`, of any grid and
    any number of frames. Every readout resizes them in time on request (`num_frames`) by its
    `time_method`.

    NaN and infinity are refused. Such a value reaches the outputs of its sample, so the test looks
    at the few outputs, and at the features only to word the error. It makes a GPU wait for the
    result, and it is left out of compiled graphs and on the meta device.

    Args:
        feature_dim: channels of the features.
        time_method: "paper", "causal" or "nearest", see `probe_readouts.temporal_matrix`.
        sizes: the other keyword arguments of the readout that are sizes, at least 1 each.
        options: its other keyword arguments.

    Raises:
        ValueError: a size below 1 or an unknown time method.
    """

    def __init__(
        self,
        feature_dim: int,
        time_method: str,
        sizes: dict[str, int],
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        for name, size in {"feature_dim": feature_dim, **sizes}.items():
            if size < 1:
                raise ValueError(f"{name} {size} must be at least 1")
        if time_method not in TIME_METHODS:
            raise ValueError(f"unknown time_method {time_method!r}; choose one of {TIME_METHODS}")
        self.feature_dim = feature_dim
        self.time_method = time_method
        self.config: dict[str, Any] = {
            "feature_dim": feature_dim,
            **sizes,
            **(options or {}),
            "time_method": time_method,
        }
        """Plain keyword arguments that build a readout of the same form."""

    def reset_parameters(self) -> None:
        """Draw new weights from torch's default generator."""
        raise NotImplementedError

    def _check_features(self, features: Tensor) -> None:
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
        if num_frames * height * width == 0:
            raise ValueError(
                f"features of shape {tuple(features.shape)} have an empty grid; t, h and w must "
                "be at least 1"
            )
        weight_dtype = next(self.parameters()).dtype
        device = features.device.type
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        # Autocast converts these, and leaves float64 as it is.
        converted = (torch.float32, torch.bfloat16, torch.float16)
        if features.dtype != weight_dtype and not (autocast and features.dtype in converted):
            raise ValueError(
                f"features are {features.dtype} but the readout's weights are {weight_dtype}; "
                "convert one of them, or call the readout under torch.autocast"
            )

    def _num_frames(self, features: Tensor, num_frames: int | None) -> int:
        """Count the frames that are wanted: those asked for, or the features' own."""
        if num_frames is not None and num_frames < 1:
            raise ValueError(f"num_frames {num_frames} must be at least 1")
        return features.shape[1] if num_frames is None else num_frames

    def _read(self, head: nn.Module, x: Tensor) -> Tensor:
        """Apply the last layers in the precision of the weights, also under autocast.

        bfloat16 has steps of 1 pixel for a point at 256 x 256, and of 2 cm for a depth of 4 m.
        """
        x = x.to(next(head.parameters()).dtype)
        if not torch.amp.is_autocast_available(x.device.type):
            return head(x)
        with torch.autocast(x.device.type, enabled=False):
            return head(x)

    def _check_finite(self, features: Tensor, outputs: Tensor) -> None:
        """Raise if NaN or infinity in the features is why outputs are not finite."""
        if torch.compiler.is_compiling() or outputs.is_meta or bool(outputs.isfinite().all()):
            return
        finite = features.isfinite()
        if bool(finite.all()):
            return
        bad = int((~finite).sum())
        samples = (~finite).flatten(1).any(dim=1).nonzero().flatten().tolist()
        raise ValueError(
            f"features hold {bad} values that are NaN or infinite, in samples {samples} of the "
            "batch; readouts need finite features: check the backbone's weights, input and "
            "precision"
        )
