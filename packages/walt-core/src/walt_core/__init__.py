"""WALT, the windowed-attention latent video diffusion transformer, and its image twin."""

from walt_core.conditions import Conditions
from walt_core.config import WALT_SIZES, WaltConfig, Windows
from walt_core.diffusion import NoiseSchedule, sample_noise
from walt_core.model import Walt, num_parameters
from walt_core.sampling import continue_video, sample
from walt_core.training import Draws, Rates, denoising_loss, draw

__all__ = [
    "WALT_SIZES",
    "Conditions",
    "Draws",
    "NoiseSchedule",
    "Rates",
    "Walt",
    "WaltConfig",
    "Windows",
    "continue_video",
    "denoising_loss",
    "draw",
    "num_parameters",
    "sample",
    "sample_noise",
]
__version__ = "0.2.0"
