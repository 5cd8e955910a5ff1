"""Tokenizer configurations: published sizes, derived strides, and what is refused."""

import json
from typing import Any

import pytest
import torch

from walt_tokenizer import TOKENIZERS, TokenizerConfig, VideoTokenizer
from walt_tokenizer.geometry import num_latents

# Encoder and decoder parameters of the MAGVIT-v2 structure at 128 base channels.
ENCODER, DECODER = 144_860_168, 225_513_091


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def meta_model(config: TokenizerConfig) -> VideoTokenizer:
    with torch.device("meta"):
        return VideoTokenizer(config)


def test_magvit2_128_has_the_published_structure() -> None:
    model = meta_model(TOKENIZERS["magvit2-128"])
    assert (count(model.encoder), count(model.decoder)) == (ENCODER, DECODER)
    assert count(model) == ENCODER + DECODER == 370_373_259


def test_down_sampling_kernels_of_4() -> None:
    assert count(meta_model(TokenizerConfig(down_kernel=4))) == 375_829_131


def test_half_the_channels_and_blocks() -> None:
    model = meta_model(TokenizerConfig(base_channels=64, num_res_blocks=2))
    assert count(model) == 56_362_315


@pytest.mark.parametrize("name", TOKENIZERS)
def test_named_tokenizers_have_the_strides_of_walt(name: str) -> None:
    config = TOKENIZERS[name]
    assert (config.temporal_stride, config.spatial_stride) == (4, 8)
    assert config.latent_channels == 8
    assert num_latents(17, config.temporal_stride) == 5


@pytest.mark.parametrize("name", TOKENIZERS)
def test_only_the_published_biases(name: str) -> None:
    """The first encoder convolution and all residual-block convolutions have none."""
    model = meta_model(TOKENIZERS[name])
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Conv3d):
            in_block = any(part in path for part in (".conv1.", ".conv2.", ".skip."))
            expected = not in_block and path != "encoder.conv_in.conv"
            assert (module.bias is not None) == expected, path


@pytest.mark.parametrize("name", TOKENIZERS)
def test_survives_json(name: str) -> None:
    config = TOKENIZERS[name]
    assert TokenizerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temporal_strides": (2, 2)}, r"temporal_strides \(2, 2\) must have one entry per"),
        ({"temporal_strides": (1, 2, 3)}, "must each be 1 or 2"),
        ({"down_kernel": 5}, "down_kernel 5 must be 3 or 4"),
        ({"num_res_blocks": 0}, "num_res_blocks 0"),
        ({"latent_channels": 0}, "latent_channels 0"),
        ({"base_channels": 20}, "stage width 20 must be a positive multiple of norm_groups 32"),
    ],
)
def test_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenizerConfig(**fields)
