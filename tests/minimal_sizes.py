"""A tokenizer and a denoiser of milliseconds, for clips of 16 x 16 pixels.

Tests and the processes that they start read this file by its path.
"""

from walt_core import WALT_SIZES, WaltConfig
from walt_tokenizer import TOKENIZERS, TokenizerConfig

TOKENIZER = TokenizerConfig(
    base_channels=4,
    channel_multipliers=(1, 1, 1, 2),
    num_res_blocks=1,
    latent_channels=4,
    norm_groups=4,
)
WALT = WaltConfig(
    width=16,
    depth=2,
    num_heads=2,
    latent_channels=4,
    latent_size=(2, 2, 2),
    spatial_window=(1, 2, 2),
    spatiotemporal_window=(2, 2, 2),
    self_conditioning=True,
    frame_conditioning=True,
)


def register() -> None:
    """Makes both known to this process by the name `minimal`."""
    TOKENIZERS["minimal"] = TOKENIZER
    WALT_SIZES["minimal"] = WALT
