"""Text states: the same from file and encoder, padding that counts for nothing, plain errors."""

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from probe_eval.config import EmbedConfig
from probe_eval.text import TextStates, encode_prompts, read_states, run_embed, write_states

WORDS = ["<pad>", "</s>", "<unk>", "a", "disc", "ring", "moves", "left"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 encoder of random weights, with a tokenizer of eight words."""
    from transformers import T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = T5Config(vocab_size=len(WORDS), d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder)
    ends = {"single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": END}]}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            **ends,
            "pair": ends["single"],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "model": {
            "type": "WordLevel",
            "vocab": {word: number for number, word in enumerate(WORDS)},
            "unk_token": "<unk>",
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"})
    )
    return folder


END = {"id": "</s>", "type_id": 0}


def test_states_are_those_of_each_prompt_alone_and_come_back_from_a_file(
    encoder: Path, accelerator: Accelerator, tmp_path: Path
) -> None:
    prompts = ("a disc", "a ring moves left")
    config = EmbedConfig(encoder=str(encoder), output=str(tmp_path / "text.safetensors"))
    text = run_embed(prompts, config, accelerator)
    assert text.states.shape == (2, 5, 8)
    assert text.valid.sum(dim=1).tolist() == [3, 5]  # with the token that ends a prompt
    assert text.states[0, 3:].eq(0).all()
    alone = encode_prompts(prompts[:1], str(encoder), accelerator.device)
    assert torch.equal(alone.states[0], text.states[0, :3])
    assert not torch.equal(text.states[0, 0], text.states[1, 0])  # the encoder sees the whole
    read = read_states(config.output)
    assert read.prompts == prompts
    assert torch.equal(read.states, text.states)
    assert torch.equal(read.valid, text.valid)
    assert (read.encoder, read.fingerprint) == (str(encoder), text.fingerprint)


def test_states_can_be_selected_in_any_order() -> None:
    text = TextStates.of({"a": torch.ones(1, 3), "b": torch.full((2, 3), 2.0)}, "made up")
    chosen = text.select(["b", "a", "b"])
    assert chosen.states[:, 0, 0].tolist() == [2, 1, 2]
    with pytest.raises(ValueError, match="no text states of the prompt 'c'; known: 'a', 'b'; make"):
        text.select(["c"])


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        ([], "no prompt given"),
        ([" "], "prompt ' ' has 1 tokens, expected words"),
        (["a " * 200], "has 201 tokens, expected words, and at most 128"),
    ],
)
def test_prompts_that_cannot_be_encoded(
    encoder: Path, accelerator: Accelerator, tmp_path: Path, prompts: list[str], says: str
) -> None:
    config = EmbedConfig(encoder=str(encoder), output=str(tmp_path / "text.safetensors"))
    with pytest.raises(ValueError, match=says):
        run_embed(prompts, config, accelerator)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_an_encoder_is_told_in_a_line(
    accelerator: Accelerator, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="cannot be loaded as a T5 encoder"):
        encode_prompts(["a"], str(tmp_path), accelerator.device)


def test_transformers_that_is_not_installed_is_told(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "transformers":
            raise ImportError("no module")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'probe-eval\[text\]', or give a file"):
        encode_prompts(["a"], "somewhere", accelerator.device)


def test_files_that_hold_no_states_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.safetensors"
    with pytest.raises(FileNotFoundError, match="make one with `probe-eval embed PROMPT"):
        read_states(path)
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="its format is None, expected 'probe-eval-text/1'"):
        read_states(path)
    states = TextStates.of({"a": torch.tensor([[1.0, float("nan")]])}, "made up")
    write_states(path, states)
    with pytest.raises(ValueError, match="it holds NaN or infinite values"):
        read_states(path)
    path.write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match="is no file of text states"):
        read_states(path)
