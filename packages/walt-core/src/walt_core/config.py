"""WALT sizes: one frozen record per model, in a table that names its source."""

import dataclasses
from typing import Any, Literal, get_args

Windows = Literal["spatiotemporal", "spatial"]
"""Which windows even layers attend in: `spatiotemporal` is V-WALT, `spatial` I-WALT."""
AttentionImpl = Literal["auto", "math", "sdpa", "flash"]
PositionBias = Literal["joint", "axial"]
"""Form of the relative position bias: one table of all offsets (t, h, w), or one for each axis."""


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
    position_bias: PositionBias = "joint"
    """`joint` is that of the published counts; `axial` can be had from kernels without a bias."""
    num_classes: int = 0
    """Classes that can be asked for; the null class is one more. 0: no class conditioning."""
    text_width: int = 0
    """Channels of the text encoder's states; 0: no text, and no cross-attention."""
    self_conditioning: bool = False
    """Whether the model reads an estimate of the clean latents."""
    frame_conditioning: bool = False
    """Whether the model reads the first, clean latent frames."""
    attention: AttentionImpl = "auto"
    """Attention implementation; `auto` chooses at construction and logs its choice. With `flash`,
    text of which some tokens do not count goes through `sdpa`, which takes a mask."""

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
        for name, kind in (("attention", AttentionImpl), ("position_bias", PositionBias)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"{name} {getattr(self, name)!r} must be one of {', '.join(get_args(kind))}"
                )
        for name in ("num_classes", "text_width"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)} must be 0 (none) or more")
        if self.attention == "flash" and self.position_bias == "joint":
            raise ValueError(
                "attention 'flash' takes no additive bias, which position_bias 'joint' needs; use "
                "'sdpa' or 'math', or position_bias 'axial'"
            )
        if self.spatial_window[0] != 1:
            raise ValueError(f"spatial_window {self.spatial_window} must span 1 latent frame")
        for name in ("spatial_window", "spatiotemporal_window"):
            window = getattr(self, name)
            if any(size % part for size, part in zip(self.latent_size, window, strict=True)):
                raise ValueError(
                    f"{name} {window} must divide the latent grid (t, h, w)={self.latent_size}"
                )

    @property
    def input_channels(self) -> int:
        """Channels that the patch embedding reads: latents, estimate, past latents and mask."""
        c = self.latent_channels
        return c + c * self.self_conditioning + (c + 1) * self.frame_conditioning

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


NANO = WaltConfig(
    width=128,
    depth=6,
    num_heads=4,
    latent_size=(5, 4, 4),
    spatial_window=(1, 4, 4),
    spatiotemporal_window=(5, 4, 4),
)
BASE = WaltConfig(
    width=1024, depth=16, text_width=4096, self_conditioning=True, frame_conditioning=True
)
LARGE = WaltConfig(width=1024, depth=24, num_classes=101, self_conditioning=True)
WALT_SIZES: dict[str, WaltConfig] = {
    "nano": NANO,
    "tiny": dataclasses.replace(
        NANO, width=192, num_heads=6, self_conditioning=True, frame_conditioning=True
    ),
    "284m": BASE,
    "724m": dataclasses.replace(BASE, width=1408, depth=22),
    "1.9b": dataclasses.replace(BASE, width=2048, depth=28),
    "l": LARGE,
    "xl": dataclasses.replace(LARGE, width=1152, depth=28),
}
"""Named sizes.

`284m`, `724m` and `1.9b` are those of From Image to Video, with T5 v1.1 XXL text; `l` and `xl` are
the WALT paper's (Table 1), for the 101 classes of UCF-101. Only the width of `284m` and the depth
and width of `l` and `xl` are published, the rest follows from the published counts. `nano` and
`tiny` train on a CPU in minutes, on clips of 17 x 32 x 32 pixels.
"""
