"""Readout heads that turn the features of a frozen video backbone into predictions."""

from probe_readouts.attentive import AttentiveReadout
from probe_readouts.losses import classification_loss
from probe_readouts.time import resize_time, temporal_matrix

__version__ = "0.1.0"

__all__ = [
    "AttentiveReadout",
    "__version__",
    "classification_loss",
    "resize_time",
    "temporal_matrix",
]
