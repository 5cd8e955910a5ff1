"""A synthetic world of textured solids in a room, with every label that a probe can ask for."""

from probe_datasets.synthetic.actions import ACTIONS, opposite
from probe_datasets.synthetic.config import SHAPES, TEXTURES, WorldConfig
from probe_datasets.synthetic.dataset import SPEC, SyntheticWorld, WorldExample, instance_masks

__all__ = [
    "ACTIONS",
    "SHAPES",
    "SPEC",
    "TEXTURES",
    "SyntheticWorld",
    "WorldConfig",
    "WorldExample",
    "instance_masks",
    "opposite",
]
