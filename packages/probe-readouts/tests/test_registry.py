"""The study's readouts by name: published sizes, other widths, and what is refused."""

import inspect

import pytest
import torch

from probe_readouts import READOUTS, AttentiveReadout, create_readout


@pytest.mark.parametrize("name", READOUTS)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        readout = create_readout(name)
    assert sum(p.numel() for p in readout.parameters()) == READOUTS[name].parameters
    assert readout.feature_dim == 1024


def test_the_published_counts() -> None:
    """Tables 5 and 6, apart from the registry."""
    assert [spec.parameters for spec in READOUTS.values()] == [
        *(7_678_184, 7_189_869, 13_170_382, 7_042_990, 11_975_056, 12_282_556),
        *(1_650_444, 3_284_353, 12_897_668, 12_931_462),
    ]


@pytest.mark.parametrize("name", READOUTS)
def test_other_widths_and_what_rebuilds_them(name: str) -> None:
    with torch.device("meta"):
        readout = create_readout(name, 96, time_method="causal")
        again = type(readout)(**readout.config)
    assert (readout.feature_dim, readout.time_method) == (96, "causal")
    shapes = {key: value.shape for key, value in readout.state_dict().items()}
    assert {key: value.shape for key, value in again.state_dict().items()} == shapes
    assert again.config == readout.config


@pytest.mark.parametrize("name", READOUTS)
def test_the_table_of_the_docstring(name: str) -> None:
    spec = READOUTS[name]
    row = f"| {name} | {spec.task} | {spec.readout.__name__} |"
    (line,) = [line for line in inspect.getdoc(create_readout).splitlines() if row in line]
    assert line.endswith(f"| {spec.parameters:,} |")


def test_overrides_replace_the_sizes_of_the_study() -> None:
    readout = create_readout("kinetics400", 8, num_outputs=5, width=16, num_heads=4, num_frames=3)
    assert isinstance(readout, AttentiveReadout)
    assert readout(torch.zeros(2, 3, 1, 1, 8)).shape == (2, 5)
    assert READOUTS["kinetics400"].arguments["width"] == 1024


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="unknown readout 'imagenet21k'; choose one of imagenet, "):
        create_readout("imagenet21k")


def test_unknown_arguments() -> None:
    message = (
        "unknown arguments num_classes, depth for readout 'ssv2'; AttentiveReadout takes "
        "num_outputs, width, num_heads, num_frames, time_method"
    )
    with pytest.raises(ValueError, match=message):
        create_readout("ssv2", num_classes=3, depth=2)
    with pytest.raises(ValueError, match="unknown arguments num_outputs for readout 'waymo_boxes'"):
        create_readout("waymo_boxes", num_outputs=4)
