"""Clips in pieces: how they are cut, what is remembered, and what is refused."""

import dataclasses
import logging
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from walt_tokenizer import TOKENIZERS, Cache, Streaming, TokenizerConfig, VideoTokenizer, streaming
from walt_tokenizer.streaming import WHOLE, choose_streaming, rechunk

CONFIG = TokenizerConfig(
    base_channels=8,
    channel_multipliers=(1, 2, 2),
    temporal_strides=(1, 2),
    num_res_blocks=1,
    latent_channels=4,
    norm_groups=2,
)


@pytest.fixture(scope="module")
def model(build: Callable[..., VideoTokenizer]) -> VideoTokenizer:
    return build(CONFIG)


@pytest.fixture
def _small_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An activation of 4 frames of 16 x 16 is as much as fits."""
    monkeypatch.setattr(streaming, "ACTIVATION_BYTES", 4 * 16 * 16 * 16 * 4)
    choose_streaming.cache_clear()
    yield
    choose_streaming.cache_clear()


@pytest.mark.parametrize("fields", [{"frames": -1}, {"rows": -2}])
def test_negative_numbers_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"must be 0 \(all\) or more"):
        Streaming(**fields)


@pytest.mark.parametrize("lengths", [[9], [1] * 9, [2, 7], [5, 0, 4], [3, 3, 3], [4, 1, 1, 3]])
def test_rechunk_keeps_every_frame_in_order(lengths: list[int]) -> None:
    frames = torch.arange(9.0).reshape(1, 1, 9, 1, 1)
    parts = list(rechunk(frames.split(lengths, dim=2), 3, 2))
    assert [part.shape[2] for part in parts] == [3, 2, 2, 2]
    assert torch.equal(torch.cat(parts, dim=2), frames)
    parts = list(rechunk(frames.split(lengths, dim=2), 5, 3))
    assert [part.shape[2] for part in parts] == [5, 3, 1]


def test_rechunk_does_not_copy_a_long_clip() -> None:
    clip = torch.zeros(1, 1, 100, 1, 1)
    for part in rechunk([clip], 5, 4):
        assert part.untyped_storage().data_ptr() == clip.untyped_storage().data_ptr()


def test_rechunk_takes_no_more_pieces_than_it_needs() -> None:
    taken = []

    def pieces() -> Iterator[Tensor]:
        for i in range(10):
            taken.append(i)
            yield torch.zeros(1, 1, 2, 1, 1)

    parts = rechunk(pieces(), 3, 4)
    next(parts)
    assert taken == [0, 1]
    next(parts)
    assert taken == [0, 1, 2, 3]


def choose(num_frames: int | None, height: int, width: int, stride: int = 4) -> Streaming:
    return choose_streaming(num_frames, height, width, channels=16, itemsize=4, stride=stride)


@pytest.mark.usefixtures("_small_memory")
def test_what_fits_is_not_cut() -> None:
    assert choose(4, 16, 16) == WHOLE
    assert choose(1, 32, 32) == WHOLE
    assert choose(5, 16, 16) == Streaming(frames=4)


@pytest.mark.usefixtures("_small_memory")
def test_chunks_and_strips_fit() -> None:
    for num_frames in (None, 1000):
        for side in (8, 16, 32, 64, 128, 512, 4096):
            for stride in (1, 2, 4, 8):
                chosen = choose(num_frames, side, side, stride)
                assert chosen.frames >= stride
                assert chosen.frames % stride == 0
                assert chosen.frames <= streaming.MAX_CHUNK
                area = chosen.frames * (chosen.rows or side) * side * 16 * 4
                assert area <= streaming.ACTIVATION_BYTES or chosen.rows == 1


@pytest.mark.usefixtures("_small_memory")
def test_the_choice_is_said_once(
    model: VideoTokenizer, pixels: Callable[..., Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="walt_tokenizer.streaming")
    with torch.no_grad():
        model.encode(pixels(1, 3, 3, 16, 16))
        assert not caplog.records
        for _ in range(3):
            model.encode(pixels(1, 3, 33, 16, 16))
    assert [record.getMessage() for record in caplog.records] == [
        "clips of 16 x 16 pixels are worked on 8 frames at a time"
    ]


@pytest.mark.usefixtures("_small_memory")
@pytest.mark.parametrize("side", [16, 32, 64])
def test_a_long_clip_is_cut_by_itself(
    model: VideoTokenizer,
    pixels: Callable[..., Tensor],
    side: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    video = pixels(1, 3, 21, side, side)
    with torch.no_grad():
        expected = model.encode(video, streaming=WHOLE)
        clips = model.decode(expected, streaming=WHOLE)
        lengths, counts = record(model, monkeypatch)
        # 1e-5: convolutions over fewer frames may sum in another order.
        torch.testing.assert_close(model.encode(video), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.decode(expected), clips, atol=1e-5, rtol=1e-5)
    assert lengths[:2] == ([9, 8] if side == 16 else [3, 2])
    assert sum(lengths) == 21
    assert sum(counts) == 11
    assert len(counts) > 1


def record(
    model: VideoTokenizer, monkeypatch: pytest.MonkeyPatch, caches: list[Cache] | None = None
) -> tuple[list[int], list[int]]:
    """Lists that get the frames and the latents of each chunk; `caches` gets what it leaves."""
    encode, decode = model.encode_chunk, model.decode_chunk
    lengths: list[int] = []
    counts: list[int] = []

    def encode_chunk(video: Tensor, cache: Cache | None, **options: object) -> tuple:
        lengths.append(video.shape[2])
        out = encode(video, cache, **options)
        if caches is not None:
            caches.append(out[1])
        return out

    def decode_chunk(latents: Tensor, cache: Cache | None, **options: object) -> tuple:
        counts.append(latents.shape[2])
        out = decode(latents, cache, **options)
        if caches is not None:
            caches.append(out[1])
        return out

    monkeypatch.setattr(model, "encode_chunk", encode_chunk)
    monkeypatch.setattr(model, "decode_chunk", decode_chunk)
    return lengths, counts


@pytest.mark.usefixtures("_small_memory", "_unchecked")
def test_what_is_remembered_does_not_grow_with_the_clip(
    model: VideoTokenizer, pixels: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    caches: list[Cache] = []
    lengths, counts = record(model, monkeypatch, caches)
    most = []
    for frames in (17, 65, 257):
        caches.clear()
        with torch.no_grad():
            model.decode(model.encode(pixels(1, 3, frames, 16, 16)))
        most.append(max(cache.num_bytes for cache in caches))
    assert most[0] == most[1] == most[2] > 0
    assert max(lengths) == 9
    assert max(counts) == 2


def test_bytes_of_a_cache(model: VideoTokenizer, pixels: Callable[..., Tensor]) -> None:
    _, cache = model.encode_chunk(pixels(2, 3, 1, 16, 16))
    # Two frames for each 3 x 3 x 3 convolution, one for a stride of 2 in time, none for 1 x 1 x 1.
    frames = 2 * 3 + 4 * 8 + 2 * 8  # conv_in, two of stage 0, down of stage 0
    quarter = 2 * 8 + 2 * 16 + 1 * 16  # two of stage 1, whose first widens; down with stride 2
    sixteenth = 2 * 4 * 16  # stage 2 and the middle
    numbers = 2 * (frames * 256 + quarter * 64 + sixteenth * 16)
    assert cache.num_bytes == 4 * numbers
    assert Cache(()).num_bytes == 0


@pytest.mark.usefixtures("_small_memory")
def test_with_a_gradient_nothing_is_cut(
    model: VideoTokenizer, pixels: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths, counts = record(model, monkeypatch)
    assert model(pixels(1, 3, 21, 16, 16)).requires_grad
    assert lengths == counts == []


def test_pieces_and_gradients_are_refused(
    model: VideoTokenizer, pixels: Callable[..., Tensor]
) -> None:
    video = pixels(1, 3, 5, 16, 16)
    for asked in (Streaming(frames=2), Streaming(rows=4)):
        with pytest.raises(ValueError, match=r"while gradients are recorded.*torch\.no_grad"):
            model.encode(video, streaming=asked)
        with pytest.raises(ValueError, match=r"while gradients are recorded.*torch\.no_grad"):
            model.decode(torch.zeros(1, 4, 3, 2, 2), streaming=asked)
    assert torch.equal(model.encode(video, streaming=WHOLE), model.encode(video))


def test_chunks_of_no_whole_latents_are_refused(
    model: VideoTokenizer, pixels: Callable[..., Tensor]
) -> None:
    with torch.no_grad(), pytest.raises(ValueError, match=r"3 frames .* a multiple of 2 frames"):
        model.encode(pixels(1, 3, 9, 16, 16), streaming=Streaming(frames=3))
    with torch.no_grad(), pytest.raises(ValueError, match=r"3 frames .* a multiple of 2 frames"):
        model.decode(torch.zeros(1, 4, 5, 2, 2), streaming=Streaming(frames=3))
    _, cache = model.encode_chunk(pixels(1, 3, 3, 16, 16))
    with pytest.raises(ValueError, match=r"later chunk of 3 frames .* a multiple of 2 frames"):
        model.encode_chunk(pixels(1, 3, 3, 16, 16), cache)
    with pytest.raises(ValueError, match=r"clip of 4 frames .* \(1, 3, 5"):
        model.encode_chunk(pixels(1, 3, 4, 16, 16))


@pytest.mark.parametrize("frames", [2, 8, 10])
def test_a_stream_that_ends_within_a_latent_is_refused(
    model: VideoTokenizer, pixels: Callable[..., Tensor], frames: int
) -> None:
    pieces = pixels(1, 3, frames, 16, 16).split(1, dim=2)
    with pytest.raises(ValueError, match=rf"clip of {frames} frames .*\(1, 3, 5"):
        list(model.encode_stream(pieces, streaming=Streaming(frames=2)))


@pytest.mark.parametrize("frames", [None, 0])
def test_an_empty_stream_is_refused(model: VideoTokenizer, frames: int | None) -> None:
    pieces = [] if frames is None else [torch.zeros(1, 3, 0, 16, 16)]
    with pytest.raises(ValueError, match="there are no frames; pass at least one"):
        list(model.encode_stream(pieces))
    pieces = [] if frames is None else [torch.zeros(1, 4, 0, 2, 2)]
    with pytest.raises(ValueError, match="there are no latents; pass at least one"):
        list(model.decode_stream(pieces))


def test_a_stream_gives_latents_as_soon_as_they_are_known(
    model: VideoTokenizer, pixels: Callable[..., Tensor]
) -> None:
    taken = []

    def pieces() -> Iterator[Tensor]:
        for i in range(9):
            taken.append(i)
            yield pixels(1, 3, 1, 16, 16, seed=i)

    stream = model.encode_stream(pieces(), streaming=Streaming(frames=2))
    assert next(stream).shape[2] == 2
    assert len(taken) == 3
    assert next(stream).shape[2] == 1
    assert len(taken) == 5


def test_statistics_are_applied_to_every_chunk(
    build: Callable[..., VideoTokenizer], pixels: Callable[..., Tensor]
) -> None:
    model = build(CONFIG)
    model.latent_mean.copy_(torch.arange(4.0))
    model.latent_std.copy_(1 + torch.arange(4.0))
    video, chunk = pixels(1, 3, 9, 16, 16), Streaming(frames=4)
    with torch.no_grad():
        whole = model.encode(video, normalize=True)
        found = model.encode(video, normalize=True, streaming=chunk)
        torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)
        clips = model.decode(whole, denormalize=True)
        found = model.decode(whole, denormalize=True, streaming=chunk)
        torch.testing.assert_close(found, clips, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_a_cache_that_does_not_fit_is_refused(
    model: VideoTokenizer,
    build: Callable[..., VideoTokenizer],
    pixels: Callable[..., Tensor],
    direction: str,
    seed: int,
) -> None:
    deeper = build(dataclasses.replace(CONFIG, num_res_blocks=2))
    wider = build(dataclasses.replace(CONFIG, base_channels=16))

    def run(network: VideoTokenizer, cache: Cache | None, *size: int) -> Cache:
        batch, *sides = size
        if direction == "encode":
            video = pixels(batch, 3, 1 if cache is None else 2, *sides, seed=seed)
            return network.encode_chunk(video, cache)[1]
        grid = (side // 4 for side in sides)
        return network.decode_chunk(pixels(batch, 4, 1, *grid, seed=seed), cache)[1]

    cache = run(model, None, 2, 16, 16)
    run(model, cache, 2, 16, 16)
    index = (0, len(cache.frames) // 2, len(cache.frames) - 1)[seed]
    frames = list(cache.frames)
    shape = list(frames[index].shape)
    shape[2] += 1
    longer = torch.zeros(shape)
    wrong = {
        "fewer": Cache(tuple(frames[:index])),
        "one less": Cache(tuple(frames[:index] + frames[index + 1 :])),
        "one more": Cache((*frames, frames[index])),
        "more frames": Cache(tuple(longer if i == index else f for i, f in enumerate(frames))),
        "deeper network": run(deeper, None, 2, 16, 16),
        "wider network": run(wider, None, 2, 16, 16),
        "fewer clips": run(model, None, 1, 16, 16),
        "larger frames": run(model, None, 2, 24, 16),
        "smaller frames": run(model, None, 2, 16, 8),
    }
    for other in wrong.values():
        with pytest.raises(ValueError, match="the cache is of another network"):
            run(model, other, 2, 16, 16)


def test_the_cache_of_the_other_direction_is_refused(
    model: VideoTokenizer, pixels: Callable[..., Tensor]
) -> None:
    latents, encoder_cache = model.encode_chunk(pixels(1, 3, 1, 16, 16))
    _, decoder_cache = model.decode_chunk(latents)
    with pytest.raises(ValueError, match="the cache is of another network"):
        model.encode_chunk(pixels(1, 3, 2, 16, 16), decoder_cache)
    with pytest.raises(ValueError, match="the cache is of another network"):
        model.decode_chunk(latents, encoder_cache)


def test_streaming_leaves_no_trace_in_the_model(
    model: VideoTokenizer, pixels: Callable[..., Tensor]
) -> None:
    video = pixels(1, 3, 9, 16, 16)
    with torch.no_grad():
        before = model.encode(video)
        model.encode_chunk(pixels(2, 3, 5, 24, 16))
        next(model.encode_stream([video], streaming=Streaming(frames=2)))
        assert torch.equal(model.encode(video), before)


def test_rows_and_frames_of_an_image(build: Callable[..., VideoTokenizer]) -> None:
    """Any numbers will do for a clip that is shorter than a chunk."""
    model = build(TOKENIZERS["tiny"])
    image = torch.zeros(1, 3, 1, 16, 16)
    with torch.no_grad():
        expected = model.encode(image)
        for asked in (Streaming(frames=32), Streaming(rows=5), Streaming(frames=4, rows=100)):
            found = model.encode(image, streaming=asked)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
