"""I-WALT and V-WALT with their tokenizer, as frozen backbones.

Axes: b batch, T H W pixels, t h w latent grid, d width.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

import walt_core
import walt_tokenizer
from probe_readouts import weights_hash

TOKENIZER_FOLDER = "tokenizer"
MODEL_FILES = ("config.json", "model.safetensors")
MODEL_FILE = "model.json"
"""Beside them: what is known of the training."""
WINDOWS: dict[str, walt_core.Windows] = {"i-walt": "spatial", "v-walt": "spatiotemporal"}


class WaltBackbone:
    """Tokenizer, noise and one denoiser pass up to the block that is read.

    Reference: From Image to Video, Sec. 3.4 and Fig. 2.

    Raises:
        ValueError: if the tokenizer is not the one that the denoiser was trained with.
    """

    def __init__(
        self, name: str, tokenizer: walt_tokenizer.VideoTokenizer, denoiser: walt_core.Walt
    ) -> None:
        check_pair(name, tokenizer, denoiser)
        self.name = name
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.num_blocks = denoiser.config.depth
        self.width = denoiser.config.width
        modules = (self.tokenizer, self.denoiser)
        self.num_parameters = sum(p.numel() for m in modules for p in m.parameters())
        self.weights_hash = weights_hash(*modules)
        told = json.dumps(tokenizer.config.to_dict(), sort_keys=True)
        text = f"{weights_hash(tokenizer)} {told}"
        self.encoder_hash = hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def device(self) -> torch.device:
        """Where the tokenizer is."""
        return self.tokenizer.latent_mean.device

    def to(self, device: torch.device | str) -> "WaltBackbone":
        """Moves both models."""
        self.tokenizer.to(device)
        self.denoiser.to(device)
        return self

    def shardable(self) -> Sequence[nn.Module]:
        """The layers of the denoiser, which hold nearly all of the weights."""
        return list(self.denoiser.blocks)

    @torch.no_grad()
    def encode(self, video: Float[Tensor, "b 3 T H W"]) -> Float[Tensor, "b c t h w"]:
        """Normalised latents; see `FrozenBackbone.encode`."""
        return self.tokenizer.encode(video.to(self.device), normalize=True)

    def features(
        self,
        inputs: Float[Tensor, "b c t h w"],
        *,
        blocks: Sequence[int],
        timestep: int,
        seed: int,
        sample_ids: Sequence[str],
    ) -> dict[int, Float[Tensor, "b t h w d"]]:
        """See `FrozenBackbone.features`."""
        return self.denoiser.features(
            inputs.to(self.device),
            blocks=blocks,
            timestep=timestep,
            seed=seed,
            sample_ids=sample_ids,
        )

    def noise_level(self, timestep: int) -> dict[str, float]:
        """See `FrozenBackbone.noise_level`."""
        return self.denoiser.schedule.level(timestep)


def check_pair(
    name: str, tokenizer: walt_tokenizer.VideoTokenizer, denoiser: walt_core.Walt
) -> None:
    """Checks that latents of the tokenizer are what the denoiser was trained on.

    A denoiser whose recorded statistics are 0 and 1 was told none; it goes with any tokenizer
    of as many latent channels.

    Raises:
        ValueError: if channels or statistics differ.
    """
    if tokenizer.config.latent_channels != denoiser.config.latent_channels:
        raise ValueError(
            f"tokenizer has {tokenizer.config.latent_channels} latent channels but {name} "
            f"takes {denoiser.config.latent_channels}; use the pair that was trained together"
        )
    recorded = torch.stack([denoiser.latent_mean, denoiser.latent_std]).cpu()
    given = torch.stack([tokenizer.latent_mean, tokenizer.latent_std]).to(recorded)
    untold = bool((recorded[0] == 0).all() and (recorded[1] == 1).all())
    if not untold and not torch.equal(recorded, given):
        raise ValueError(
            f"{name} was trained on latents of other mean and standard deviation than the "
            "tokenizer holds; use the pair that was trained together, or train the denoiser again "
            "with this tokenizer"
        )


def is_model(folder: Path) -> bool:
    """Whether the files of a tokenizer or of a denoiser lie in a folder."""
    return all((folder / name).is_file() for name in MODEL_FILES)


def check_files(folder: str | Path, what: str, command: str) -> None:
    """Checks that the files of a model lie in a folder.

    Raises:
        FileNotFoundError: naming the one that does not, and the command that makes them.
    """
    for name in MODEL_FILES:
        if not (Path(folder) / name).is_file():
            raise FileNotFoundError(
                f"folder {folder} has no {name}, so it holds no {what}; make one with "
                f"`probe-eval {command}`, which leaves it in its folder {command.split()[-1]}/"
            )


def load_tokenizer(folder: str | Path) -> walt_tokenizer.VideoTokenizer:
    """Reads a tokenizer, in evaluation mode, from a folder of this machine.

    Raises:
        FileNotFoundError: if the folder is not one of a tokenizer.
        ValueError: if a file is damaged.
    """
    check_files(folder, "tokenizer", "pretrain tokenizer")
    return walt_tokenizer.VideoTokenizer.from_pretrained(folder).eval()


def load_denoiser(folder: str | Path) -> walt_core.Walt:
    """Reads a denoiser, in evaluation mode, from a folder of this machine.

    Raises:
        FileNotFoundError: if the folder is not one of a denoiser.
        ValueError: if a file is damaged.
    """
    check_files(folder, "denoiser", "pretrain walt")
    return walt_core.Walt.from_pretrained(folder).eval()


def load(name: str, pretrained: str, device: torch.device | str = "cpu") -> WaltBackbone:
    """Reads tokenizer and denoiser from the folder that `probe-eval pretrain twins` wrote.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is damaged, the denoiser is not of the kind its name says, or it was
            trained with another tokenizer.
    """
    folder = Path(pretrained)
    for path in (f"{model}/{file}" for model in (TOKENIZER_FOLDER, name) for file in MODEL_FILES):
        if not (folder / path).is_file():
            raise FileNotFoundError(
                f"pretrained folder {folder} has no {path}; make it with "
                f"`probe-eval pretrain twins --output {folder}`"
            )
    tokenizer = load_tokenizer(folder / TOKENIZER_FOLDER)
    denoiser = walt_core.Walt.from_pretrained(folder / name)
    if denoiser.config.windows != WINDOWS[name]:
        raise ValueError(
            f"{folder / name} has windows {denoiser.config.windows!r} but {name} needs "
            f"{WINDOWS[name]!r}; it is a model of another configuration"
        )
    return WaltBackbone(name, tokenizer.to(device), denoiser.to(device))
