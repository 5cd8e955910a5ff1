"""What a frozen backbone is, and which ones there are.

Axes: b batch, T H W pixels, t h w feature grid, d width.
"""

import importlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class FrozenBackbone(Protocol):
    """A pretrained model whose features readouts are trained on."""

    name: str
    """Name in `BACKBONES`."""
    num_blocks: int
    """Deepest block; block 0 is the patch embedding."""
    width: int
    """Channels of the features."""
    num_parameters: int
    """Parameters of everything that runs, tokenizer included."""
    weights_hash: str
    """Hash of all weights; equal hashes give equal features."""

    def features(
        self,
        video: Float[Tensor, "b 3 T H W"],
        *,
        blocks: Sequence[int],
        timestep: int,
        seed: int,
        sample_ids: Sequence[str],
    ) -> dict[int, Float[Tensor, "b t h w d"]]:
        """Features after each asked block, from one forward pass.

        Args:
            video: pixels in [-1, 1], on any device.
            blocks: each 0 .. num_blocks.
            timestep: noise level.
            seed: noise seed.
            sample_ids: one name per clip; noise depends on (seed, name, timestep) alone.

        Returns:
            Features by block, on the CPU.
        """
        ...

    def noise_level(self, timestep: int) -> dict[str, float]:
        """`alpha`, `sigma` and `log_snr` of a timestep."""
        ...


BACKBONES: dict[str, str] = {
    "i-walt": "probe_eval.backbones.walt:load",
    "v-walt": "probe_eval.backbones.walt:load",
}
"""Name -> `module:function`; the function takes (name, pretrained folder, device)."""


def load_backbone(name: str, pretrained: str, device: torch.device | str = "cpu") -> FrozenBackbone:
    """Loads a backbone by name.

    Args:
        name: key of `BACKBONES`.
        pretrained: folder of its weights.
        device: where it runs.

    Raises:
        ValueError: for an unknown name, or weights that are damaged or of another configuration.
        FileNotFoundError: if the pretrained folder lacks the weights.
    """
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}; known: {', '.join(BACKBONES)}")
    module, function = BACKBONES[name].split(":")
    return getattr(importlib.import_module(module), function)(name, pretrained, device)


def check_features(backbone: FrozenBackbone, *, block: int, timestep: int) -> None:
    """Checks that a backbone has a block and a noise level.

    Raises:
        ValueError: naming the valid range.
    """
    if not 0 <= block <= backbone.num_blocks:
        raise ValueError(
            f"block {block} must be 0 (patch embedding) to {backbone.num_blocks}, the depth of "
            f"backbone {backbone.name!r}"
        )
    backbone.noise_level(timestep)
