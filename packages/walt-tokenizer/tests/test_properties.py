"""What must hold for every configuration, length and size: checked on random ones.

Every second draw computes in fp64, where the same sums in another order differ by 1e-13: a
tolerance of 1e-10 leaves no room for a wrong row or frame. The others compute in fp32, as users
do, half of them with Winograd convolutions wherever these are possible. Shapes are not checked
here, which takes most of the time: the other tests do it.
"""

import dataclasses
import functools
import itertools
import random
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from walt_tokenizer import Streaming, TokenizerConfig, VideoTokenizer
from walt_tokenizer.ops import conv

NUM_DRAWS = 24
pytestmark = pytest.mark.slow


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """A tokenizer and a clip for it."""

    model: VideoTokenizer
    video: Tensor
    latents: Tensor
    """As large as those of `video`, but random."""
    encoded: Tensor
    """`video` encoded in one piece."""
    decoded: Tensor
    """`latents` decoded in one piece."""
    tolerance: float
    """Largest difference of equal results, relative to the largest number among them."""
    choices: random.Random
    """For what a test draws itself."""

    @property
    def stride(self) -> int:
        return self.model.config.temporal_stride

    def assert_close(self, actual: Tensor, expected: Tensor) -> None:
        assert actual.shape == expected.shape
        scale = expected.abs().max().item()
        torch.testing.assert_close(actual, expected, rtol=0, atol=self.tolerance * scale)

    def split(self, total: int, longest: int) -> list[int]:
        """Random positive numbers up to `longest` with the sum `total`."""
        parts = []
        while sum(parts) < total:
            parts.append(self.choices.randint(1, min(longest, total - sum(parts))))
        return parts


def random_config(seed: int) -> TokenizerConfig:
    choices = random.Random(seed)
    transitions = choices.choice([1, 2, 2, 3])
    strides = tuple(choices.choice([1, 2]) for _ in range(transitions))
    if seed % 8 == 0:
        strides = (1,) * transitions
    elif seed % 8 == 1:
        strides = (2, 2, 2)
    groups = choices.choice([1, 2, 4])
    return TokenizerConfig(
        base_channels=groups * choices.choice([4, 6]),
        channel_multipliers=tuple(choices.choice([1, 2]) for _ in range(len(strides) + 1)),
        temporal_strides=strides,
        num_res_blocks=choices.choice([1, 1, 2]),
        latent_channels=choices.randint(1, 6),
        norm_groups=groups,
        down_kernel=choices.choice([3, 4]),
        time_kernel=1 if seed % 16 == 0 else 3,
        quantizer=choices.choice(["none", "none", "lfq"]),
    )


@functools.cache
def create_draw(seed: int, build: Callable[..., VideoTokenizer]) -> Draw:
    config = random_config(seed)
    choices = random.Random(1000 + seed)
    dtype = torch.float32 if seed % 2 else torch.float64
    generator = torch.Generator().manual_seed(seed)
    batch, times = choices.randint(1, 2), choices.randint(2, 4)
    grid = choices.choice([(1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1)])
    height, width = (side * config.spatial_stride for side in grid)
    frames = 1 + config.temporal_stride * (times - 1)
    video = 2 * torch.rand(batch, 3, frames, height, width, generator=generator, dtype=dtype) - 1
    latents = torch.randn(
        batch, config.latent_channels, times, *grid, generator=generator, dtype=dtype
    )
    model = build(config, seed).to(dtype)
    with torch.no_grad():
        encoded, decoded = model.encode(video), model.decode(latents)
    return Draw(
        model=model,
        video=video,
        latents=latents,
        encoded=encoded,
        decoded=decoded,
        tolerance=1e-5 if dtype == torch.float32 else 1e-10,
        choices=choices,
    )


@pytest.fixture(params=range(NUM_DRAWS))
def draw(
    request: pytest.FixtureRequest,
    build: Callable[..., VideoTokenizer],
    monkeypatch: pytest.MonkeyPatch,
    _unchecked: None,
) -> Draw:
    if request.param % 4 == 3:
        monkeypatch.setattr(conv, "WINOGRAD_CHANNELS", 1)
        monkeypatch.setattr(conv, "WINOGRAD_POSITIONS", 1)
    return create_draw(request.param, build)


@pytest.fixture
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("grad", [True, False], ids=["plain", "no-grad"])
def test_later_frames_never_change_earlier_latents(draw: Draw, grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        # Of the encoder itself, as quantisation hides most changes.
        latents = draw.model.encoder(draw.video)
        codes = draw.model.encode(draw.video)
        for frame in draw.choices.sample(range(draw.video.shape[2]), 2):
            changed = draw.video.clone()
            changed[:, :, frame] = -changed[:, :, frame]
            other = draw.model.encoder(changed)
            own = -(-frame // draw.stride)
            assert torch.equal(other[:, :, :own], latents[:, :, :own]), f"frame {frame}"
            assert not torch.equal(other[:, :, own], latents[:, :, own]), f"frame {frame}"
            assert torch.equal(draw.model.encode(changed)[:, :, :own], codes[:, :, :own])


@pytest.mark.parametrize("grad", [True, False], ids=["plain", "no-grad"])
def test_later_latents_never_change_earlier_frames(draw: Draw, grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        video = draw.model.decode(draw.latents)
        for latent in draw.choices.sample(range(draw.latents.shape[2]), 2):
            changed = draw.latents.clone()
            changed[:, :, latent] = -changed[:, :, latent]
            other = draw.model.decode(changed)
            first = max(0, draw.stride * (latent - 1) + 1)
            assert torch.equal(other[:, :, :first], video[:, :, :first]), f"latent {latent}"
            assert not torch.equal(other[:, :, first], video[:, :, first]), f"latent {latent}"


@pytest.mark.parametrize("grad", [True, False], ids=["plain", "no-grad"])
def test_an_image_is_the_first_latent_of_a_video(draw: Draw, grad: bool) -> None:
    """But for rounding: a convolution over one frame may sum in another order than over many."""
    with torch.set_grad_enabled(grad):
        image = draw.model.encode(draw.video[:, :, :1])
        draw.assert_close(image, draw.model.encode(draw.video)[:, :, :1])
        frame = draw.model.decode(draw.latents[:, :, :1])
        draw.assert_close(frame, draw.model.decode(draw.latents)[:, :, :1])


@pytest.mark.usefixtures("no_grad")
def test_round_trip_keeps_the_shape(draw: Draw) -> None:
    config = draw.model.config
    for times in range(1, draw.latents.shape[2] + 1):
        video = draw.video[:, :, : 1 + draw.stride * (times - 1)]
        latents = draw.model.encode(video)
        assert latents.shape == draw.latents[:, :, :times].shape
        assert draw.model.decode(latents).shape == video.shape
        if config.quantizer == "lfq":
            assert bool((latents.abs() == 1).all())


def test_the_same_with_and_without_a_gradient(draw: Draw) -> None:
    """Without one, normalisation, padding and convolutions are other code."""
    plain, video = draw.model.encode(draw.video), draw.model.decode(draw.latents)
    assert plain.requires_grad
    assert video.requires_grad
    draw.assert_close(draw.encoded, plain.detach())
    draw.assert_close(draw.decoded, video.detach())


@pytest.mark.usefixtures("no_grad")
def test_chunks_are_the_whole(draw: Draw) -> None:
    latents, video = draw.encoded, draw.decoded
    for chunk in (1, draw.choices.randint(1, draw.latents.shape[2])):
        cache_device = draw.choices.choice(["", "cpu"])
        streaming = Streaming(frames=draw.stride * chunk, cache_device=cache_device)
        draw.assert_close(draw.model.encode(draw.video, streaming=streaming), latents)
        draw.assert_close(draw.model.decode(draw.latents, streaming=streaming), video)


@pytest.mark.usefixtures("no_grad")
def test_strips_of_rows_are_the_whole_everywhere(draw: Draw) -> None:
    """A strip sees the true rows around it: there are no seams to stay away from."""
    latents, video = draw.encoded, draw.decoded
    height = draw.video.shape[3]
    for rows in (draw.choices.randint(1, 3), draw.choices.randint(1, height)):
        frames = draw.stride * draw.choices.randint(0, 2)
        streaming = Streaming(rows=rows, frames=frames)
        draw.assert_close(draw.model.encode(draw.video, streaming=streaming), latents)
        draw.assert_close(draw.model.decode(draw.latents, streaming=streaming), video)


def test_chunks_with_a_passed_cache_are_the_whole(draw: Draw) -> None:
    latents, video = draw.encoded, draw.decoded
    parts = draw.split(draw.latents.shape[2], 3)
    cache, found = None, []
    for clip in draw.video.split(
        [1 + draw.stride * (parts[0] - 1), *(draw.stride * part for part in parts[1:])], dim=2
    ):
        part, cache = draw.model.encode_chunk(clip, cache)
        found.append(part)
    assert [part.shape[2] for part in found] == parts
    draw.assert_close(torch.cat(found, dim=2), latents)
    cache, found = None, []
    for part in draw.latents.split(parts, dim=2):
        clip, cache = draw.model.decode_chunk(part, cache)
        found.append(clip)
    draw.assert_close(torch.cat(found, dim=2), video)


@pytest.mark.usefixtures("no_grad")
def test_streams_of_pieces_are_the_whole(draw: Draw) -> None:
    latents, video = draw.encoded, draw.decoded
    frames = draw.split(draw.video.shape[2], 7)
    times = draw.split(draw.latents.shape[2], 3)
    chunk = Streaming(frames=draw.stride * draw.choices.randint(1, 3))
    for streaming in (None, chunk):
        found = draw.model.encode_stream(draw.video.split(frames, dim=2), streaming=streaming)
        draw.assert_close(torch.cat(list(found), dim=2), latents)
        found = draw.model.decode_stream(draw.latents.split(times, dim=2), streaming=streaming)
        draw.assert_close(torch.cat(list(found), dim=2), video)


def test_a_cache_is_a_value(draw: Draw) -> None:
    """The same chunk after the same cache gives the same, and nothing writes into a cache."""
    first, second = draw.video[:, :, :1], draw.video[:, :, 1:]
    _, cache = draw.model.encode_chunk(first)
    before = [frames.clone() for frames in cache.frames]
    latents, one = draw.model.encode_chunk(second, cache)
    again, two = draw.model.encode_chunk(second, cache)
    assert torch.equal(latents, again)
    assert all(itertools.starmap(torch.equal, zip(one.frames, two.frames, strict=True)))
    assert all(itertools.starmap(torch.equal, zip(cache.frames, before, strict=True)))
    _, cache = draw.model.decode_chunk(draw.latents[:, :, :1])
    before = [frames.clone() for frames in cache.frames]
    video, _ = draw.model.decode_chunk(draw.latents[:, :, 1:], cache)
    again, _ = draw.model.decode_chunk(draw.latents[:, :, 1:], cache)
    assert torch.equal(video, again)
    assert all(itertools.starmap(torch.equal, zip(cache.frames, before, strict=True)))


def test_the_draws_cover_what_a_configuration_can_be() -> None:
    configs = [random_config(seed) for seed in range(NUM_DRAWS)]
    assert {config.time_kernel for config in configs} == {1, 3}
    assert {config.down_kernel for config in configs} == {3, 4}
    assert {config.quantizer for config in configs} == {"none", "lfq"}
    assert {config.num_res_blocks for config in configs} == {1, 2}
    assert {config.temporal_stride for config in configs} == {1, 2, 4, 8}
    assert any(set(config.temporal_strides) == {1} for config in configs if config.time_kernel > 1)
