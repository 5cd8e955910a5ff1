"""Tokenizer sizes: one frozen record per model, in a table that names its source."""

import dataclasses
from typing import Any


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
    """Groups of every GroupNorm; statistics are per frame."""
    down_kernel: int = 3
    """Kernel size of the down-sampling convolutions, 3 or 4."""

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
        if self.num_res_blocks < 1 or self.latent_channels < 1:
            raise ValueError(
                f"num_res_blocks {self.num_res_blocks} and latent_channels "
                f"{self.latent_channels} must be positive"
            )
        for width in self.widths:
            if width < 1 or width % self.norm_groups:
                raise ValueError(
                    f"stage width {width} must be a positive multiple of norm_groups "
                    f"{self.norm_groups}; change base_channels {self.base_channels} or norm_groups"
                )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage, finest first."""
        return tuple(self.base_channels * multiplier for multiplier in self.channel_multipliers)

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
    "tiny": TokenizerConfig(
        base_channels=8, channel_multipliers=(1, 2, 4, 8), num_res_blocks=1, norm_groups=4
    ),
}
"""Named configurations: `magvit2-128` is WALT's tokenizer; `tiny` trains on a CPU in minutes."""
