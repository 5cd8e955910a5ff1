"""WALT sizes: one frozen record per model, in a table that names its source."""

import dataclasses
from typing import Any, Literal, get_args

Windows = Literal["spatiotemporal", "spatial"]
"""Which windows even layers attend in: `spatiotemporal` is V-WALT, `spatial` I-WALT."""
AttentionImpl = Literal["auto", "math", "sdpa"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class WaltConfig:
    """Structure of a windowed-attention latent transformer.

    Reference: WALT (Gupta et al., ECCV 2024, arXiv 2312.06662), Sec. 3; the image twin is
        From Image to Video, Sec. 3.3.

    Raises:
        ValueError: if a field is out of range or the windows do not divide the latent grid.
    """

    width: int
    """Channels of the residual stream."""
    depth: int
    """Number of layers; odd layers (1, 3, ...) attend in space, even ones in `windows`."""
    num_heads: int = 16
    """Attention heads; must divide `width`."""
    mlp_ratio: int = 4
    """Hidden width of the MLP over `width`."""
    latent_channels: int = 8
    """Channels of the tokenizer's latents."""
    latent_size: tuple[int, int, int] = (5, 16, 16)
    """Latent grid (t, h, w) of the position tables; other grids interpolate them."""
    spatial_window: tuple[int, int, int] = (1, 16, 16)
    """Window (t, h, w) of the spatial layers."""
    spatiotemporal_window: tuple[int, int, int] = (5, 8, 8)
    """Window (t, h, w) of the spatio-temporal layers."""
    windows: Windows = "spatiotemporal"
    """`spatiotemporal` is V-WALT; `spatial` is I-WALT, in which every layer attends in space."""
    adaln_rank: int = 2
    """Rank of each layer's own part of the modulation (AdaLN-LoRA)."""
    attention: AttentionImpl = "auto"
    """Attention implementation; `auto` chooses at construction and logs its choice."""

    def __post_init__(self) -> None:
        for name in ("width", "depth", "num_heads", "mlp_ratio", "latent_channels", "adaln_rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        if self.width % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} must divide width {self.width}")
        if self.windows not in ("spatiotemporal", "spatial"):
            raise ValueError(
                f"windows {self.windows!r} must be 'spatiotemporal' (V-WALT) or 'spatial' (I-WALT)"
            )
        if self.attention not in get_args(AttentionImpl):
            raise ValueError(
                f"attention {self.attention!r} must be {', '.join(get_args(AttentionImpl))}; "
                "the relative position bias needs a kernel that takes one"
            )
        if self.spatial_window[0] != 1:
            raise ValueError(f"spatial_window {self.spatial_window} must span 1 latent frame")
        for name in ("spatial_window", "spatiotemporal_window"):
            window = getattr(self, name)
            if any(size % part for size, part in zip(self.latent_size, window, strict=True)):
                raise ValueError(
                    f"{name} {window} must divide the latent grid (t, h, w)={self.latent_size}"
                )

    def window(self, layer: int) -> tuple[int, int, int]:
        """Attention window of a layer, counted from 1: space first, then alternating."""
        if layer % 2 == 0 and self.windows == "spatiotemporal":
            return self.spatiotemporal_window
        return self.spatial_window

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "WaltConfig":
        """The inverse of `to_dict`, also after a trip through JSON, which has no tuples.

        Raises:
            TypeError: for a field that is unknown.
            ValueError: for a value out of range.
        """
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**fields)


WALT_SIZES: dict[str, WaltConfig] = {
    "tiny": WaltConfig(
        width=128,
        depth=6,
        num_heads=4,
        latent_size=(5, 4, 4),
        spatial_window=(1, 4, 4),
        spatiotemporal_window=(5, 4, 4),
    ),
}
"""Named sizes. `tiny` trains on a CPU in minutes, on clips of 17 x 32 x 32 pixels."""
