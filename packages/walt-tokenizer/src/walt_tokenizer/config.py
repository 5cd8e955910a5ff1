"""Tokenizer sizes: one frozen record per model, in a table that names its source."""

import dataclasses
from typing import Any, Literal


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    """Structure of a causal 3D convolutional tokenizer.

    Reference: MAGVIT-v2 (Yu et al., ICLR 2024, arXiv 2310.05737); 8 continuous latent channels
        as in WALT (Gupta et al., ECCV 2024, arXiv 2312.06662).

    Raises:
        ValueError: if a field is out of range or the widths do not divide into norm groups.
    """

    base_channels: int = 128
    """Width of the first stage."""
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4)
    """Width of each stage, as a multiple of `base_channels`."""
    temporal_strides: tuple[int, ...] = (1, 2, 2)
    """Time stride of each down-sampling; every down-sampling halves height and width."""
    num_res_blocks: int = 4
    """Residual blocks in each stage and in the middle."""
    latent_channels: int = 8
    """Channels of the continuous latent."""
    norm_groups: int = 32
    """Groups of every GroupNorm, whose statistics are per frame; 0 for a network without norms."""
    down_kernel: int = 3
    """Kernel size of the down-sampling convolutions, 3 or 4."""
    time_kernel: int = 3
    """Kernel size along time: 3, or 1 for an image tokenizer, which sees every frame alone."""
    quantizer: Literal["none", "lfq"] = "none"
    """`none` for continuous latents; `lfq` for look-up-free quantisation to -1 and 1."""

    def __post_init__(self) -> None:
        if len(self.temporal_strides) != len(self.channel_multipliers) - 1:
            raise ValueError(
                f"temporal_strides {self.temporal_strides} must have one entry per transition "
                f"between the {len(self.channel_multipliers)} stages of channel_multipliers"
            )
        if any(stride not in (1, 2) for stride in self.temporal_strides):
            raise ValueError(f"temporal_strides {self.temporal_strides} must each be 1 or 2")
        if self.down_kernel not in (3, 4):
            raise ValueError(f"down_kernel {self.down_kernel} must be 3 or 4")
        if self.time_kernel not in (1, 3):
            raise ValueError(f"time_kernel {self.time_kernel} must be 3, or 1 for images")
        if self.time_kernel == 1 and self.temporal_stride > 1:
            raise ValueError(
                f"temporal_strides {self.temporal_strides} must all be 1 with time_kernel 1: an "
                "image tokenizer sees every frame alone"
            )
        if self.quantizer not in ("none", "lfq"):
            raise ValueError(f"unknown quantizer {self.quantizer!r}; known: none, lfq")
        if self.num_res_blocks < 1 or self.latent_channels < 1:
            raise ValueError(
                f"num_res_blocks {self.num_res_blocks} and latent_channels "
                f"{self.latent_channels} must be positive"
            )
        if self.norm_groups < 0:
            raise ValueError(f"norm_groups {self.norm_groups} must be positive, or 0 for no norms")
        for width in self.widths:
            if width < 1 or (self.norm_groups and width % self.norm_groups):
                raise ValueError(
                    f"stage width {width} must be a positive multiple of norm_groups "
                    f"{self.norm_groups}; change base_channels {self.base_channels} or norm_groups"
                )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage, finest first."""
        return tuple(self.base_channels * multiplier for multiplier in self.channel_multipliers)

    @property
    def kernel(self) -> tuple[int, int, int]:
        """Kernel of every convolution but the down-sampling and pointwise ones."""
        return (self.time_kernel, 3, 3)

    @property
    def down_kernel_size(self) -> tuple[int, int, int]:
        """Kernel of the down-sampling convolutions along time, height and width."""
        return (self.down_kernel if self.time_kernel > 1 else 1, self.down_kernel, self.down_kernel)

    @property
    def spatial_stride(self) -> int:
        """Pixels per latent position along height and along width."""
        return 2 ** len(self.temporal_strides)

    @property
    def temporal_stride(self) -> int:
        """Frames per latent after the first, which holds frame 0 alone."""
        stride = 1
        for factor in self.temporal_strides:
            stride *= factor
        return stride

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TokenizerConfig":
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


TOKENIZERS: dict[str, TokenizerConfig] = {
    "magvit2-128": TokenizerConfig(),
    "magvit2-64": TokenizerConfig(base_channels=64, num_res_blocks=2),
    "magvit2-128-lfq": TokenizerConfig(latent_channels=18, quantizer="lfq"),
    "magvit2-128-image": TokenizerConfig(time_kernel=1, temporal_strides=(1, 1, 1)),
    "tiny": TokenizerConfig(
        base_channels=8, channel_multipliers=(1, 2, 4, 8), num_res_blocks=1, norm_groups=0
    ),
    "tiny-norm": TokenizerConfig(
        base_channels=8, channel_multipliers=(1, 2, 4, 8), num_res_blocks=1, norm_groups=4
    ),
    "tiny-image": TokenizerConfig(
        base_channels=8,
        channel_multipliers=(1, 2, 4, 8),
        temporal_strides=(1, 1, 1),
        num_res_blocks=1,
        norm_groups=0,
        time_kernel=1,
    ),
}
"""Named configurations.

`magvit2-128` is WALT's tokenizer (MAGVIT-v2's network with 8 continuous channels), `magvit2-64` a
smaller one; `magvit2-128-lfq` has MAGVIT-v2's own look-up-free quantiser with 2^18 codes;
`magvit2-128-image` is its 2D twin, from which `inflate` starts a video tokenizer; `tiny` and its
twin `tiny-image` train on a CPU. They have no norms: in a frame's few channels GroupNorm loses its
colours and contrast (see docs/training-tiny.md). `tiny-norm` has them and bears a higher learning
rate, which is better for the first thousand steps of a training from nothing.
"""
