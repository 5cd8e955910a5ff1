"""States of a text encoder: read from a file, or made by any T5 encoder.

Axes: p prompts, s tokens, e width.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from probe_eval.config import EmbedConfig
from probe_eval.runs import write_tensors

if TYPE_CHECKING:
    from accelerate import Accelerator

FORMAT = "probe-eval-text/1"
MOST_TOKENS = 128


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TextStates:
    """States of some prompts, padded to the longest."""

    prompts: tuple[str, ...]
    """The prompts, in the order of the rows."""
    states: Float[Tensor, "p s e"]
    """States, zero where they do not count."""
    valid: Bool[Tensor, "p s"]
    """Which tokens count."""
    encoder: str
    """Name of the encoder that made them."""

    @property
    def width(self) -> int:
        """Channels of a state."""
        return self.states.shape[2]

    @property
    def fingerprint(self) -> str:
        """Hash of prompts and states."""
        digest = hashlib.sha256(json.dumps([self.prompts, self.encoder]).encode())
        digest.update(self.states.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def row(self, prompt: str) -> int:
        """The row of a prompt.

        Raises:
            ValueError: for one that is not there, naming those that are.
        """
        if prompt not in self.prompts:
            known = ", ".join(repr(known) for known in self.prompts[:6])
            more = ", ..." if len(self.prompts) > 6 else ""
            raise ValueError(
                f"there are no text states of the prompt {prompt!r}; known: {known}{more}; make "
                "them with `probe-eval embed`"
            )
        return self.prompts.index(prompt)

    def select(self, prompts: Sequence[str]) -> "TextStates":
        """The states of some prompts, in their order.

        Raises:
            ValueError: for one that is not there.
        """
        rows = [self.row(prompt) for prompt in prompts]
        return dataclasses.replace(
            self, prompts=tuple(prompts), states=self.states[rows], valid=self.valid[rows]
        )

    @classmethod
    def of(cls, states: Mapping[str, Float[Tensor, "_s _e"]], encoder: str) -> "TextStates":
        """States of each prompt, put together."""
        padded = torch.nn.utils.rnn.pad_sequence(list(states.values()), batch_first=True)
        lengths = torch.tensor([len(value) for value in states.values()])
        valid = torch.arange(padded.shape[1]) < lengths[:, None]
        return cls(prompts=tuple(states), states=padded.float(), valid=valid, encoder=encoder)


def write_states(path: Path, text: TextStates) -> None:
    """Writes states as safetensors, one tensor for each prompt, whole or not at all."""
    tensors = {
        f"states.{number}": text.states[number, text.valid[number]]
        for number in range(len(text.prompts))
    }
    metadata = {"format": FORMAT, "encoder": text.encoder, "prompts": json.dumps(text.prompts)}
    write_tensors(path, tensors, metadata)


def read_states(path: str | Path) -> TextStates:
    """Reads what `write_states` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a file of text states.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"there is no file {path} of text states; make one with `probe-eval embed PROMPT... "
            "--encoder FOLDER --output FILE`"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, expected {FORMAT!r}")
            prompts = json.loads(metadata["prompts"])
            states = {p: file.get_tensor(f"states.{i}") for i, p in enumerate(prompts)}
        shapes = {value.shape[1:] for value in states.values() if value.ndim == 2 and len(value)}
        if len(shapes) != 1 or any(value.ndim != 2 or not len(value) for value in states.values()):
            raise ValueError("its states are not of one width, or a prompt has none")
        if not all(bool(torch.isfinite(value).all()) for value in states.values()):
            raise ValueError("it holds NaN or infinite values")
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is no file of text states ({error}); make one with `probe-eval embed`"
        ) from error
    return TextStates.of(states, metadata["encoder"])


def encode_prompts(prompts: Sequence[str], encoder: str, device: torch.device) -> TextStates:
    """States of prompts from a T5 encoder, without those of padding.

    Args:
        prompts: at least one; each at most 128 tokens, with the one that ends it.
        encoder: name on the Hugging Face Hub or folder of a T5 encoder with its tokenizer.
        device: where it computes.

    Raises:
        ImportError: if transformers is not installed.
        ValueError: if the encoder cannot be loaded, or a prompt is empty or too long.
    """
    try:
        from transformers import AutoTokenizer, T5EncoderModel
    except ImportError as error:
        raise ImportError(
            "text is encoded by transformers, which is not installed: pip install "
            "'probe-eval[text]', or give a file of text states"
        ) from error
    try:
        splitter: Any = AutoTokenizer.from_pretrained(encoder)
        model: Any = T5EncoderModel.from_pretrained(encoder)
    except (OSError, ValueError) as error:
        first = " ".join(str(error).split())[:200]
        raise ValueError(f"{encoder!r} cannot be loaded as a T5 encoder ({first})") from error
    model = model.to(device).eval()
    states = {}
    for prompt in dict.fromkeys(prompts):
        ids = splitter(prompt, return_tensors="pt").input_ids.to(device)
        if not prompt.strip() or ids.shape[1] > MOST_TOKENS:
            raise ValueError(
                f"prompt {prompt[:60]!r} has {ids.shape[1]} tokens, expected words, and at most "
                f"{MOST_TOKENS} tokens"
            )
        with torch.inference_mode():
            states[prompt] = model(input_ids=ids).last_hidden_state[0].float().cpu().clone()
    return TextStates.of(states, encoder)


def run_embed(
    prompts: Sequence[str], config: EmbedConfig, accelerator: "Accelerator"
) -> TextStates:
    """Writes the states of prompts to a file.

    Raises:
        ImportError: if transformers is not installed.
        ValueError: if there is no prompt, the encoder cannot be loaded, or a prompt is empty or too
            long.
    """
    if not prompts:
        raise ValueError("no prompt given; pass at least one, in quotes")
    if Path(config.output).is_dir():
        raise ValueError(f"output {config.output} is a folder; give a file as --output")
    text = encode_prompts(prompts, config.encoder, accelerator.device)
    if accelerator.is_main_process:
        write_states(Path(config.output), text)
    accelerator.wait_for_everyone()
    return text
