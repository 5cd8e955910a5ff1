"""WALT configurations: published parameter counts, windows of each layer, and what is refused."""

import dataclasses
import json
import math
from typing import Any

import pytest
import torch

from walt_core import WALT_SIZES, Walt, WaltConfig, num_parameters

LARGE_WITH_TEXT = dataclasses.replace(WALT_SIZES["l"], num_classes=0, text_width=2048)


def shapes(config: WaltConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: p.shape for name, p in Walt(config).named_parameters()}


def bookkeeping(config: WaltConfig) -> int:
    """Parameters of a model, added up from the published description."""
    d, c, r = config.width, config.latent_channels, config.adaln_rank
    t, h, w = config.latent_size
    head = d // config.num_heads
    channels = c + c * config.self_conditioning + (c + 1) * config.frame_conditioning
    patch = channels * d + d
    positions = h * w * d + t * d
    timestep = (256 * d + d) + (d * d + d)
    classes = (config.num_classes + 1) * d if config.num_classes else 0
    text = config.text_width * d + d if config.text_width else 0
    modulation = d * 6 * d + 6 * d
    output = (d * 2 * d + 2 * d) + (d * c + c)
    total = patch + positions + timestep + classes + text + modulation + output
    for layer in range(1, config.depth + 1):
        total += r * (d + 6 * d)
        total += 4 * d * d + 4 * d + 2 * head
        spans = [2 * size - 1 for size in config.window(layer)]
        offsets = math.prod(spans) if config.position_bias == "joint" else sum(spans)
        total += offsets * config.num_heads
        if config.text_width:
            total += 2 * d + 4 * d * d + 4 * d + 2 * head
        total += 2 * config.mlp_ratio * d * d + (config.mlp_ratio + 1) * d
    return total


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        # Published as 284 M, 724 M and 1.9 B (From Image to Video).
        ("284m", {}, 283_503_880),
        ("724m", {}, 723_659_560),
        ("1.9b", {}, 1_928_682_696),
        # Published as 313 M and 460 M (WALT, Table 1).
        ("l", {}, 313_238_408),
        ("xl", {}, 460_019_080),
        # Published as 314 M, 316 M, 324 M and 357 M (WALT, Table 2).
        ("l", {"adaln_rank": 4}, 313_582_472),
        ("l", {"adaln_rank": 16}, 315_646_856),
        ("l", {"adaln_rank": 64}, 323_904_392),
        ("l", {"adaln_rank": 256}, 356_934_536),
        # Published as 419 M, with a pooled text that is left out here.
        ("l", {"num_classes": 0, "text_width": 2048}, 416_045_960),
    ],
)
def test_published_counts(name: str, fields: dict[str, Any], expected: int) -> None:
    config = dataclasses.replace(WALT_SIZES[name], **fields)
    assert num_parameters(config) == expected == bookkeeping(config)


@pytest.mark.parametrize("name", WALT_SIZES)
@pytest.mark.parametrize("position_bias", ["joint", "axial"])
def test_counts_are_those_of_the_description(name: str, position_bias: Any) -> None:
    config = dataclasses.replace(WALT_SIZES[name], windows="spatial", position_bias=position_bias)
    assert num_parameters(config) == bookkeeping(config)


def test_tiny_has_a_few_million_parameters() -> None:
    assert 2e6 < num_parameters(WALT_SIZES["tiny"]) < 5e6


def test_counting_allocates_nothing() -> None:
    """The weights of this one would fill terabytes."""
    config = WaltConfig(width=2**16, depth=24)
    assert num_parameters(config) == bookkeeping(config) > 10**12


def test_counting_is_that_of_a_model_with_values(small: WaltConfig) -> None:
    assert num_parameters(small) == sum(p.numel() for p in Walt(small).parameters())


def test_image_twin_differs_in_bias_tables_alone() -> None:
    video = WALT_SIZES["284m"]
    image = dataclasses.replace(video, windows="spatial")
    of_video, of_image = shapes(video), shapes(image)
    assert of_video.keys() == of_image.keys()
    differ = {name for name, shape in of_video.items() if shape != of_image[name]}
    assert differ == {f"blocks.{layer}.attention.bias.table" for layer in range(1, 16, 2)}
    entries = sum(of_video[name].numel() - of_image[name].numel() for name in differ)
    assert entries == num_parameters(video) - num_parameters(image) == 136_192


def test_named_sizes_read_what_the_papers_say() -> None:
    channels = {name: config.input_channels for name, config in WALT_SIZES.items()}
    assert channels == {
        "nano": 8,
        "tiny": 25,
        "284m": 25,
        "724m": 25,
        "1.9b": 25,
        "l": 16,
        "xl": 16,
    }
    for name in ("284m", "724m", "1.9b", "l", "xl"):
        config = WALT_SIZES[name]
        assert (config.num_heads, config.mlp_ratio, config.adaln_rank) == (16, 4, 2)
        assert (config.latent_size, config.latent_channels) == ((5, 16, 16), 8)
        assert (config.window(1), config.window(2)) == ((1, 16, 16), (5, 8, 8))
        assert (config.position_bias, config.windows) == ("joint", "spatiotemporal")


def test_windows_alternate_and_space_comes_first() -> None:
    config = WaltConfig(width=64, depth=4)
    windows = [config.window(layer) for layer in range(1, 5)]
    assert windows == [(1, 16, 16), (5, 8, 8), (1, 16, 16), (5, 8, 8)]
    image = dataclasses.replace(config, windows="spatial")
    assert {image.window(layer) for layer in range(1, 5)} == {(1, 16, 16)}


@pytest.mark.parametrize("name", WALT_SIZES)
def test_survives_json(name: str) -> None:
    config = WALT_SIZES[name]
    assert WaltConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 0}, "width 0 must be at least 1"),
        ({"depth": 0}, "depth 0 must be at least 1"),
        ({"num_heads": 0}, "num_heads 0 must be at least 1"),
        ({"mlp_ratio": 0}, "mlp_ratio 0 must be at least 1"),
        ({"latent_channels": 0}, "latent_channels 0 must be at least 1"),
        ({"adaln_rank": 0}, "adaln_rank 0 must be at least 1"),
        ({"num_classes": -1}, r"num_classes -1 must be 0 \(none\) or more"),
        ({"text_width": -1}, r"text_width -1 must be 0 \(none\) or more"),
        ({"num_heads": 5}, "num_heads 5 must divide width 64"),
        ({"spatial_window": (5, 16, 16)}, "must span 1 latent frame"),
        ({"spatial_window": (1, 16, 12)}, r"spatial_window \(1, 16, 12\) must divide the latent"),
        ({"spatiotemporal_window": (2, 8, 8)}, r"spatiotemporal_window \(2, 8, 8\) must divide"),
        ({"attention": "flash"}, "'flash' takes no additive bias, .* position_bias 'axial'"),
    ],
)
def test_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WaltConfig(**({"width": 64, "depth": 2} | fields))


@pytest.mark.usefixtures("_unchecked")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"windows": "time"}, r"windows 'time' must be 'spatiotemporal' .* 'spatial'"),
        ({"attention": "fast"}, "attention 'fast' must be one of auto, math, sdpa, flash"),
        ({"position_bias": "none"}, "position_bias 'none' must be one of joint, axial"),
    ],
)
def test_unknown_names_list_the_known_ones(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WaltConfig(**({"width": 64, "depth": 2} | fields))
