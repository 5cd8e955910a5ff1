"""Inflation: a video tokenizer that begins as an image tokenizer."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from walt_tokenizer import TokenizerConfig, VideoTokenizer, inflate

IMAGE = TokenizerConfig(
    base_channels=8,
    channel_multipliers=(1, 2, 2),
    temporal_strides=(1, 1),
    num_res_blocks=1,
    latent_channels=4,
    norm_groups=4,
    time_kernel=1,
)
STRIDES = [(1, 1), (1, 2), (2, 1), (2, 2)]


def to_video(strides: tuple[int, ...] = (1, 2), **changes: Any) -> TokenizerConfig:
    return dataclasses.replace(IMAGE, time_kernel=3, temporal_strides=strides, **changes)


@pytest.fixture(scope="module", params=[(3, "none"), (4, "none"), (3, "lfq")], ids=str)
def image(request: pytest.FixtureRequest, build: Callable[..., VideoTokenizer]) -> VideoTokenizer:
    """In fp64: what is left of a difference is no rounding."""
    down_kernel, quantizer = request.param
    model = build(dataclasses.replace(IMAGE, down_kernel=down_kernel, quantizer=quantizer)).double()
    model.latent_mean.copy_(torch.arange(4.0))
    model.latent_std.copy_(1 + torch.arange(4.0))
    return model


def inflated(image: VideoTokenizer, strides: tuple[int, ...]) -> VideoTokenizer:
    config = dataclasses.replace(image.config, time_kernel=3, temporal_strides=strides)
    return inflate(image, config)


def random_pixels(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("grad", [True, False])
def test_an_image_is_coded_as_by_the_image_tokenizer(
    image: VideoTokenizer, strides: tuple[int, ...], grad: bool
) -> None:
    """To 1e-12: the zeros in the kernels change the order of sums, and nothing else."""
    video = inflated(image, strides)
    pixels = random_pixels(2, 3, 1, 8, 12)
    latents = torch.randn(2, 4, 1, 2, 3, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        for normalize in (True, False):
            found = video.encode(pixels, normalize=normalize)
            expected = image.encode(pixels, normalize=normalize)
            torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
        found, expected = video.decode(latents), image.decode(latents)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("strides", STRIDES)
@torch.no_grad()
def test_a_static_video_is_coded_as_its_image(
    image: VideoTokenizer, strides: tuple[int, ...]
) -> None:
    video = inflated(image, strides)
    pixels = random_pixels(1, 3, 1, 8, 12)
    frames = 1 + 2 * video.config.temporal_stride
    expected = image.encode(pixels)
    found = video.encode(pixels.expand(-1, -1, frames, -1, -1))
    assert found.shape[2] == 3
    torch.testing.assert_close(found, expected.expand_as(found), atol=1e-12, rtol=1e-12)
    clip = video.decode(found)
    assert clip.shape[2] == frames
    expected = image.decode(expected)
    torch.testing.assert_close(clip, expected.expand_as(clip), atol=1e-12, rtol=1e-12)


@torch.no_grad()
def test_a_latent_codes_the_last_of_its_frames(image: VideoTokenizer) -> None:
    """The past has no weight, so the other frames are not seen."""
    video = inflated(image, (1, 2))
    clip = random_pixels(1, 3, 5, 8, 8)
    found = video.encode(clip)
    expected = image.encode(clip[:, :, [0, 2, 4]])
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    # Each latent decodes to its image, as often as it has frames.
    expected = image.decode(found)[:, :, [0, 1, 1, 2, 2]]
    torch.testing.assert_close(video.decode(found), expected, atol=1e-12, rtol=1e-12)


def test_statistics_type_and_configuration_come_along(image: VideoTokenizer) -> None:
    video = inflated(image, (2, 2))
    assert torch.equal(video.latent_mean, image.latent_mean)
    assert torch.equal(video.latent_std, image.latent_std)
    assert {parameter.dtype for parameter in video.parameters()} == {torch.float64}
    assert (video.config.time_kernel, video.config.temporal_strides) == (3, (2, 2))


def test_every_weight_can_learn_from_the_first_step(image: VideoTokenizer) -> None:
    video = inflated(image, (1, 2))
    video(random_pixels(1, 3, 5, 8, 8)).square().sum().backward()
    for name, parameter in video.named_parameters():
        assert parameter.grad is not None, name
        if parameter.ndim == 5 and image.config.quantizer != "lfq":
            assert parameter.grad[:, :, 0].any(), name


def test_the_image_tokenizer_stays_as_it_was(build: Callable[..., VideoTokenizer]) -> None:
    image = build(IMAGE)
    before = {name: value.clone() for name, value in image.state_dict().items()}
    video = inflate(image, to_video())
    with torch.no_grad():
        for parameter in video.parameters():
            parameter.zero_()
    for name, value in image.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"base_channels": 16}, "encoder.stages.0.0.conv1.conv.weight"),
        ({"channel_multipliers": (1, 2, 4)}, "decoder.conv_in.conv.weight"),
        ({"num_res_blocks": 2}, "missing encoder.stages.0.1.conv1.conv.weight"),
        ({"latent_channels": 8}, "decoder.conv_in.conv.weight"),
        ({"down_kernel": 4}, "encoder.downs.0.conv.conv.weight"),
        ({"norm_groups": 2}, "norm_groups"),
        ({"quantizer": "lfq"}, "quantizer"),
    ],
)
def test_another_network_is_refused(
    build: Callable[..., VideoTokenizer], changes: dict[str, Any], name: str
) -> None:
    with pytest.raises(ValueError, match="does not inflate to") as caught:
        inflate(build(IMAGE), to_video(**changes))
    assert name in str(caught.value)
    assert "must differ in time_kernel and temporal_strides only" in str(caught.value)


def test_deeper_to_shallower_names_what_is_too_much(build: Callable[..., VideoTokenizer]) -> None:
    image = build(dataclasses.replace(IMAGE, num_res_blocks=2))
    with pytest.raises(ValueError, match=r"unexpected encoder\.stages\.0\.1\.norm1\.norm\.weight"):
        inflate(image, to_video())


def test_a_video_tokenizer_is_no_image_tokenizer(build: Callable[..., VideoTokenizer]) -> None:
    with pytest.raises(ValueError, match=r"time_kernel 3.* image tokenizer"):
        inflate(build(to_video()), to_video())
