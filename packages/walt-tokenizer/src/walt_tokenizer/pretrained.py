"""Weights that people exchange: a folder, or a repository of the Hugging Face Hub.

`model.safetensors` holds weights and latent statistics, `config.json` the configuration. Nothing
is ever unpickled; files appear whole or not at all.
"""

import json
import os
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from walt_tokenizer.config import TokenizerConfig

FORMAT = "walt-tokenizer/1"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
INVALID = "holds no valid tokenizer configuration"

# `Self` would be refused by the shape checker of the tests.
Model = TypeVar("Model", bound="PretrainedModel")


class PretrainedModel(
    nn.Module, ModelHubMixin, library_name="walt-tokenizer", tags=["video-tokenizer"]
):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` for a model made of one config."""

    config: TokenizerConfig

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> str | None:
        """Writes `config.json`, `model.safetensors` and a model card to a folder.

        Args:
            save_directory: the folder; made where it lacks. A card that is there stays.
            options: `push_to_hub=True` with `repo_id` and whatever else `push_to_hub` takes.

        Returns:
            The address of the commit, with `push_to_hub=True`.

        Raises:
            ValueError: if a weight is not finite.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.contiguous() for name, value in self.state_dict().items()}
        check_finite(state, "the model")
        config = json.dumps({"format": FORMAT, **self.config.to_dict()}, indent=2)
        # The weights carry their configuration too, so that files of two models are told apart.
        with Replacement(folder / WEIGHTS_FILE) as partial:
            save_file(state, partial, {"format": "pt", "config": config})
        with Replacement(folder / CONFIG_FILE) as partial:
            partial.write_text(config + "\n", encoding="utf-8")
        if not (folder / CARD_FILE).exists():
            card = self.generate_model_card(**options.get("model_card_kwargs") or {})
            with Replacement(folder / CARD_FILE) as partial:
                card.save(partial)
        if not options.pop("push_to_hub", False):
            return None
        options.pop("config", None)
        return self.push_to_hub(repo_id=options.pop("repo_id", None) or folder.name, **options)

    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        device: torch.device | str = "cpu",
        **download: Any,
    ) -> Model:
        """The model of a folder or of a Hub repository, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a folder that `save_pretrained` wrote, or a repository
                such as `user/tokenizer`.
            device: where the weights go.
            download: for repositories: `revision`, `token`, `cache_dir`, `force_download`,
                `local_files_only`.

        Raises:
            FileNotFoundError: if there is no such folder, repository or file.
            ValueError: if a file is damaged, is not a tokenizer's, or its tensors do not fit its
                configuration; every missing, unexpected or mis-shaped tensor is named.
        """
        config_path, weights_path = find_files(str(pretrained_model_name_or_path), download)
        config = read_config(config_path)
        metadata, state = read_weights(weights_path)
        inside = metadata.get("config")
        if inside is not None and parse(inside) != parse(config_path.read_text("utf-8")):
            raise ValueError(
                f"{weights_path} was saved with another configuration than {config_path} says; "
                "copy both files of one model"
            )
        try:
            with torch.device("meta"):
                model = cls(config)
        except TypeError as error:  # of a field, such as 2.5 channels
            raise ValueError(f"{config_path} {INVALID}: {error}") from error
        problems = mismatches(model.state_dict(), state)
        if problems:
            raise ValueError(f"{weights_path} does not fit {config}: {'; '.join(problems)}")
        check_finite(state, str(weights_path))
        model.load_state_dict(state, assign=True)
        return model.eval().to(device)


def find_files(name: str, download: dict[str, Any]) -> tuple[Path, Path]:
    """Paths of configuration and weights, downloaded where `name` is no folder here.

    Raises:
        FileNotFoundError: if a file cannot be found here or there.
    """
    folder = Path(name)
    if folder.is_dir():
        paths = (folder / CONFIG_FILE, folder / WEIGHTS_FILE)
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(
                    f"{folder} has no {path.name}; expected a folder that save_pretrained wrote"
                )
        return paths
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"there is no folder {name}; expected one that save_pretrained wrote, or the name of a "
            "Hub repository such as user/tokenizer"
        )
    try:
        config, weights = (
            Path(hf_hub_download(name, file, **download)) for file in (CONFIG_FILE, WEIGHTS_FILE)
        )
    except (HfHubHTTPError, OSError) as error:
        raise FileNotFoundError(
            f"{name} is no folder here, and no Hub repository with {CONFIG_FILE} and "
            f"{WEIGHTS_FILE} that can be reached ({type(error).__name__}: {error})"
        ) from error
    return config, weights


def read_config(path: Path) -> TokenizerConfig:
    """The configuration in a `config.json`.

    Raises:
        ValueError: if the file is damaged or not a tokenizer's.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); copy it again") from error
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise ValueError(
            f"{path} is not the configuration of a tokenizer: expected format {FORMAT!r}, which "
            "VideoTokenizer.save_pretrained writes"
        )
    try:
        return TokenizerConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} {INVALID}: {error}") from error


def parse(text: str) -> Any:
    """The value of a JSON text, and None for what is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def read_weights(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}); it is damaged or cut short: "
            "copy or train it again"
        ) from error


def mismatches(expected: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    """One phrase for each tensor that is missing, unexpected, or of another shape or kind."""
    problems = [
        f"missing {name} {tuple(value.shape)}"
        for name, value in expected.items()
        if name not in found
    ]
    problems += [
        f"unexpected {name} {tuple(value.shape)}"
        for name, value in found.items()
        if name not in expected
    ]
    for name, value in expected.items():
        if name in found and found[name].shape != value.shape:
            problems.append(f"{name} is {tuple(found[name].shape)}, expected {tuple(value.shape)}")
        elif name in found and not found[name].is_floating_point():
            problems.append(f"{name} is of {found[name].dtype}, expected floating point")
    return problems


def check_finite(state: dict[str, Tensor], owner: str) -> None:
    """Checks that all numbers are finite.

    Raises:
        ValueError: naming the tensors that are not.
    """
    bad = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise ValueError(
            f"{owner} holds NaN or infinite numbers in {', '.join(bad)}; its training went wrong: "
            "go back to an earlier checkpoint"
        )


class Replacement:
    """A file that takes its place when it is complete."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path.with_name(f".{path.name}.{os.getpid()}.partial")

    def __enter__(self) -> Path:
        return self.partial

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        try:
            if kind is None:
                os.replace(self.partial, self.path)
        finally:
            self.partial.unlink(missing_ok=True)
