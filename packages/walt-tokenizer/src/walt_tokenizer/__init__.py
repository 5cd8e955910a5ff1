"""A MAGVIT-v2 style causal video tokenizer with continuous latents."""

from walt_tokenizer.checkpoint import load_checkpoint, save_checkpoint
from walt_tokenizer.config import TOKENIZERS, TokenizerConfig
from walt_tokenizer.losses import reconstruction_loss
from walt_tokenizer.model import VideoTokenizer

__all__ = [
    "TOKENIZERS",
    "TokenizerConfig",
    "VideoTokenizer",
    "load_checkpoint",
    "reconstruction_loss",
    "save_checkpoint",
]
__version__ = "0.1.0"
