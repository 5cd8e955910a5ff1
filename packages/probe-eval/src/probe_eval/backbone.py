"""What a frozen backbone is, which ones there are, and how a user's own is found.

Axes: b batch, T H W pixels, t h w feature grid, d width.
"""

import importlib
import inspect
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe_eval.backbones.module import ModuleBackbone, Pixels, Submodules, told_errors
from probe_eval.networks import find_object

__all__ = [
    "BACKBONES",
    "FrozenBackbone",
    "ModuleBackbone",
    "Pixels",
    "Submodules",
    "check_features",
    "load_backbone",
]


@runtime_checkable
class FrozenBackbone(Protocol):
    """A pretrained model whose features readouts are trained on.

    One that is large may also have `shardable() -> Sequence[nn.Module]`, outermost last, and
    `to(device)`: what is spread over processes with `--features.shard`.
    """

    name: str
    """Name in `BACKBONES`, or what a user's function calls it."""
    num_blocks: int
    """Deepest block; block 0 is the patch embedding."""
    width: int
    """Channels of the features."""
    num_parameters: int
    """Parameters of everything that runs, tokenizer included."""
    weights_hash: str
    """Hash of all that decides features; equal hashes give equal features."""
    encoder_hash: str
    """Hash of all that `encode` depends on; empty where inputs are the pixels, which are not worth
    keeping."""

    def encode(self, video: Float[Tensor, "b 3 T H W"]) -> Tensor:
        """What `features` takes: latents, or the pixels.

        Args:
            video: pixels in [-1, 1], on any device.

        Returns:
            A row per clip, on the backbone's device, without gradients.
        """
        ...

    def features(
        self,
        inputs: Float[Tensor, "b ..."],
        *,
        blocks: Sequence[int],
        timestep: int,
        seed: int,
        sample_ids: Sequence[str],
    ) -> dict[int, Float[Tensor, "b t h w d"]]:
        """Features after each asked block, from one forward pass.

        Args:
            inputs: what `encode` returned, on any device.
            blocks: each 0 .. num_blocks.
            timestep: noise level.
            seed: noise seed.
            sample_ids: one name per clip; noise depends on (seed, name, timestep) alone.

        Returns:
            Features by block, on the backbone's device, without gradients.
        """
        ...

    def noise_level(self, timestep: int) -> dict[str, float]:
        """`alpha`, `sigma` and `log_snr` of a timestep.

        Raises:
            ValueError: if it is out of range.
        """
        ...


BACKBONES: dict[str, str] = {
    "i-walt": "probe_eval.backbones.walt:load",
    "v-walt": "probe_eval.backbones.walt:load",
}
"""Name -> `module:function`; the function takes (name, pretrained folder, device)."""


def load_backbone(name: str, pretrained: str, device: torch.device | str = "cpu") -> FrozenBackbone:
    """Loads a backbone.

    Args:
        name: key of `BACKBONES`, or a user's function as `file.py:function` or `module:function`,
            which is called with (pretrained, device) and returns a backbone.
        pretrained: folder of its weights.
        device: where it runs.

    Raises:
        ValueError: for an unknown name, or weights that are damaged or of another configuration;
            or if a user's function returns no backbone.
        FileNotFoundError: if the pretrained folder lacks the weights, or there is no such file.
        ImportError: if there is no such module.
    """
    if ":" in name:
        return load_users(name, pretrained, device)
    if name not in BACKBONES:
        raise ValueError(
            f"unknown backbone {name!r}; known: {', '.join(BACKBONES)}, and functions of your own: "
            "'path/to/file.py:function' or 'package.module:function'"
        )
    module, function = BACKBONES[name].split(":")
    return getattr(importlib.import_module(module), function)(name, pretrained, device)


def load_users(spec: str, pretrained: str, device: torch.device | str) -> FrozenBackbone:
    """A backbone that a user's function makes.

    Raises:
        ValueError: if the function is not there, fails, or returns no backbone.
        OSError: as the function raises it, or if its file is not there.
        ImportError: if there is no such module, or it lacks something.
    """
    function = find_object(spec, "backbone")
    try:
        inspect.signature(function).bind(pretrained, device)
    except TypeError as error:
        raise ValueError(
            f"backbone {spec!r} cannot be called with (pretrained, device): {error}; define it as "
            "def load(pretrained, device)"
        ) from error
    with told_errors(f"backbone {spec!r}"):
        found = function(pretrained, device)
    check_backbone(spec, found)
    return found.to(device) if isinstance(found, ModuleBackbone) else found


def check_backbone(name: str, found: Any) -> None:
    """Checks that what a user's function returned is a backbone.

    Raises:
        ValueError: naming what it lacks.
    """
    if isinstance(found, FrozenBackbone):
        return
    if isinstance(found, nn.Module):
        lacks = "a model; tell which blocks it has"
    else:
        wanted = (*FrozenBackbone.__annotations__, "encode", "features", "noise_level")
        lacks = f"without {', '.join(part for part in wanted if not hasattr(found, part))}"
    raise ValueError(
        f"backbone {name!r}: the function returned {type(found).__name__}, {lacks}; return "
        "probe_eval.backbone.ModuleBackbone(name, model, read, num_blocks, width)"
    )


def check_features(backbone: FrozenBackbone, *, block: int, timestep: int) -> None:
    """Checks that a backbone has a block and a noise level.

    Raises:
        ValueError: naming the valid range.
    """
    if not 0 <= block <= backbone.num_blocks:
        raise ValueError(
            f"block {block} must be 0 to {backbone.num_blocks}, the depth of "
            f"backbone {backbone.name!r}"
        )
    backbone.noise_level(timestep)
