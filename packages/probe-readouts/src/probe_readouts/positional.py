"""Fourier features of coordinates.

Axes: `n` coordinates, `f` features.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

NUM_OCTAVES = 16


def fourier_features(
    coordinates: Float[Tensor, "*b n"], num_octaves: int = NUM_OCTAVES
) -> Float[Tensor, "*b f"]:
    """Encode coordinates by sines, then cosines, of `pi 2^i u` for octaves `i` from 0.

    The angles are octave-major: all coordinates at octave 0, then all at octave 1. At octave 15 a
    difference of one unit in the last place of a float32 coordinate is 4e-3 of the feature, so
    angles are computed in float32 at least, whatever the precision around them, and cosines as
    sin(x + pi / 2), as in the published readouts.

    Reference:
        Mildenhall et al., NeRF (ECCV 2020), Eq. 4; Sajjadi et al., Scene Representation
        Transformer (CVPR 2022), Sec. 3.2.

    Args:
        coordinates: in [0, 1] or [-1, 1], whatever the readout uses.
        num_octaves: octaves, at least 1.

    Returns:
        `2 n num_octaves` features in [-1, 1], float32 or, for float64 coordinates, float64.
    """
    dtype = torch.promote_types(coordinates.dtype, torch.float32)
    scales = torch.exp2(torch.arange(num_octaves, dtype=dtype, device=coordinates.device))
    pi = torch.tensor(math.pi, dtype=dtype, device=coordinates.device)
    angles = (scales[:, None] * (coordinates.to(dtype) * pi)[..., None, :]).flatten(-2)
    return torch.cat([angles.sin(), (angles + pi / 2).sin()], dim=-1)
