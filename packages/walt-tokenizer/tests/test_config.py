"""Tokenizer configurations: published sizes, derived strides, and what is refused."""

import dataclasses
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


def test_magvit2_64_has_half_the_channels_and_blocks() -> None:
    assert count(meta_model(TOKENIZERS["magvit2-64"])) == 56_362_315


def test_lfq_differs_from_magvit2_128_in_its_latent_channels_only() -> None:
    model = meta_model(TOKENIZERS["magvit2-128-lfq"])
    more = 18 - 8
    # conv_out with its bias; conv_in; the modulation at the entry of each of the four stages.
    assert count(model.encoder) == ENCODER + more * (512 + 1)
    assert count(model.decoder) == DECODER + more * (512 * 27 + 2 * (512 + 512 + 256 + 256))


def test_image_tokenizer_has_no_kernel_in_time() -> None:
    model = meta_model(TOKENIZERS["magvit2-128-image"])
    kernels = [m.kernel_size for m in model.modules() if isinstance(m, torch.nn.Conv3d)]
    assert {kernel[0] for kernel in kernels} == {1}
    assert {kernel[1:] for kernel in kernels} == {(3, 3), (1, 1)}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_named_tokenizers_have_the_strides_of_walt(name: str) -> None:
    config = TOKENIZERS[name]
    is_image = config.time_kernel == 1
    assert (config.temporal_stride, config.spatial_stride) == (1 if is_image else 4, 8)
    assert config.latent_channels == (18 if config.quantizer == "lfq" else 8)
    assert num_latents(17, config.temporal_stride) == (17 if is_image else 5)


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
        ({"time_kernel": 2, "temporal_strides": (1, 1, 1)}, "time_kernel 2 must be 3, or 1"),
        ({"time_kernel": 1}, r"temporal_strides \(1, 2, 2\) must all be 1 with time_kernel 1"),
        ({"norm_groups": 48}, "stage width 128 must be a positive multiple of norm_groups 48"),
        ({"norm_groups": -1}, "norm_groups -1 must be positive, or 0"),
        ({"num_res_blocks": 0}, "num_res_blocks 0"),
        ({"latent_channels": 0}, "latent_channels 0"),
        ({"base_channels": 20}, "stage width 20 must be a positive multiple of norm_groups 32"),
    ],
)
def test_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenizerConfig(**fields)


@pytest.mark.usefixtures("_unchecked")
def test_unknown_quantizer_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown quantizer 'vq'; known: none, lfq"):
        TokenizerConfig.from_dict({"quantizer": "vq"})


def test_unknown_field_is_refused() -> None:
    with pytest.raises(TypeError, match="base_chanels"):
        TokenizerConfig.from_dict({"base_chanels": 64})


def test_same_widths_for_images_as_for_videos() -> None:
    image, video = TOKENIZERS["magvit2-128-image"], TOKENIZERS["magvit2-128"]
    assert image == dataclasses.replace(video, time_kernel=1, temporal_strides=(1, 1, 1))
