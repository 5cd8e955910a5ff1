"""A MAGVIT-v2 style causal video tokenizer."""

from walt_tokenizer.config import TOKENIZERS, TokenizerConfig
from walt_tokenizer.discriminator import Discriminator, DiscriminatorConfig
from walt_tokenizer.inflate import inflate
from walt_tokenizer.losses import (
    LecamAverages,
    LossWeights,
    discriminator_loss,
    generator_loss,
    lecam_penalty,
    r1_penalty,
    reconstruction_loss,
)
from walt_tokenizer.model import VideoTokenizer
from walt_tokenizer.quantize import (
    codes_to_indices,
    commitment_loss,
    entropy_loss,
    indices_to_codes,
    quantize,
)
from walt_tokenizer.streaming import Cache, Streaming

__all__ = [
    "TOKENIZERS",
    "Cache",
    "Discriminator",
    "DiscriminatorConfig",
    "LecamAverages",
    "LossWeights",
    "Streaming",
    "TokenizerConfig",
    "VideoTokenizer",
    "codes_to_indices",
    "commitment_loss",
    "discriminator_loss",
    "entropy_loss",
    "generator_loss",
    "indices_to_codes",
    "inflate",
    "lecam_penalty",
    "quantize",
    "r1_penalty",
    "reconstruction_loss",
]
__version__ = "0.2.0"
