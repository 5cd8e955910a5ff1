"""WALT, the windowed-attention latent video diffusion transformer, and its image twin."""

from walt_core.checkpoint import load_checkpoint, save_checkpoint
from walt_core.config import WALT_SIZES, WaltConfig, Windows
from walt_core.diffusion import NoiseSchedule, sample_noise, v_prediction_loss
from walt_core.model import Walt

__all__ = [
    "WALT_SIZES",
    "NoiseSchedule",
    "Walt",
    "WaltConfig",
    "Windows",
    "load_checkpoint",
    "sample_noise",
    "save_checkpoint",
    "v_prediction_loss",
]
__version__ = "0.1.0"
