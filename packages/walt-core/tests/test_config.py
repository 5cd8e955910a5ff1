"""WALT configurations: windows of each layer, parameter bookkeeping, and what is refused."""

import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Any

import jaxtyping
import pytest
import torch

from walt_core import WALT_SIZES, Walt, WaltConfig


@pytest.fixture
def unchecked_types() -> Iterator[None]:
    """Turn off the checks of annotations, which speak before our errors."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def meta_model(config: WaltConfig) -> Walt:
    with torch.device("meta"):
        return Walt(config)


def count(config: WaltConfig) -> int:
    return sum(p.numel() for p in meta_model(config).parameters())


def bookkeeping(config: WaltConfig) -> int:
    """Parameters of the unconditional model, added up from the published description."""
    d, c, r = config.width, config.latent_channels, config.adaln_rank
    t, h, w = config.latent_size
    patch = c * d + d
    positions = h * w * d + t * d
    timestep = (256 * d + d) + (d * d + d)
    modulation = d * 6 * d + 6 * d
    output = (d * 2 * d + 2 * d) + (d * c + c)
    total = patch + positions + timestep + modulation + output
    for layer in range(1, config.depth + 1):
        span_t, span_h, span_w = (2 * size - 1 for size in config.window(layer))
        attention = 4 * d * d + 4 * d + 2 * (d // config.num_heads)
        mlp = 2 * config.mlp_ratio * d * d + (config.mlp_ratio + 1) * d
        bias = span_t * span_h * span_w * config.num_heads
        total += r * (d + 6 * d) + attention + bias + mlp
    return total


@pytest.mark.parametrize("name", WALT_SIZES)
@pytest.mark.parametrize("windows", ["spatiotemporal", "spatial"])
def test_named_sizes_have_the_published_bookkeeping(name: str, windows: Any) -> None:
    config = dataclasses.replace(WALT_SIZES[name], windows=windows)
    assert count(config) == bookkeeping(config)


def test_bookkeeping_at_full_size() -> None:
    config = WaltConfig(width=1024, depth=16)
    assert count(config) == bookkeeping(config)


def test_image_twin_differs_in_bias_tables_alone() -> None:
    video = WaltConfig(width=1024, depth=16)
    image = dataclasses.replace(video, windows="spatial")
    shapes = [
        {name: tuple(p.shape) for name, p in meta_model(config).named_parameters()}
        for config in (video, image)
    ]
    assert shapes[0].keys() == shapes[1].keys()
    differ = {name for name, shape in shapes[0].items() if shape != shapes[1][name]}
    assert len(differ) == 8
    assert all("bias.table" in name for name in differ)
    entries = sum(math.prod(shapes[0][n]) - math.prod(shapes[1][n]) for n in differ)
    assert entries == count(video) - count(image) == 136_192


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
        ({"adaln_rank": 0}, "adaln_rank 0 must be at least 1"),
        ({"num_heads": 5}, "num_heads 5 must divide width 64"),
        ({"spatial_window": (5, 16, 16)}, "must span 1 latent frame"),
        ({"spatial_window": (1, 16, 12)}, r"spatial_window \(1, 16, 12\) must divide the latent"),
        ({"spatiotemporal_window": (2, 8, 8)}, r"spatiotemporal_window \(2, 8, 8\) must divide"),
    ],
)
def test_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WaltConfig(**({"width": 64, "depth": 2} | fields))


@pytest.mark.usefixtures("unchecked_types")
def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"windows 'time' must be 'spatiotemporal' .* 'spatial'"):
        WaltConfig(width=64, depth=2, windows="time")
    with pytest.raises(ValueError, match="attention 'fast' must be auto, math, sdpa"):
        Walt(WaltConfig(width=64, depth=2, attention="fast"))
