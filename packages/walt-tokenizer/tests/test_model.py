"""The tokenizer as a whole: shapes, statistics, training, and what it refuses."""

import copy
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from walt_tokenizer import (
    TOKENIZERS,
    TokenizerConfig,
    VideoTokenizer,
    codes_to_indices,
    indices_to_codes,
    layers,
    reconstruction_loss,
)

BASE = TokenizerConfig(base_channels=8, num_res_blocks=1, norm_groups=4, latent_channels=4)
LFQ = dataclasses.replace(BASE, latent_channels=6, quantizer="lfq")
CONFIGS = {
    "tiny": TOKENIZERS["tiny"],
    "kernel-4": dataclasses.replace(BASE, down_kernel=4),
    "stride-8": dataclasses.replace(BASE, temporal_strides=(2, 2, 2)),
    "per-frame": dataclasses.replace(BASE, temporal_strides=(1, 1, 1)),
    "image": dataclasses.replace(BASE, temporal_strides=(1, 1, 1), time_kernel=1),
    "two-stages": dataclasses.replace(BASE, channel_multipliers=(1, 2), temporal_strides=(2,)),
    "lfq": LFQ,
}


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest, build: Callable[..., VideoTokenizer]) -> VideoTokenizer:
    return build(CONFIGS[request.param])


@pytest.fixture(scope="module")
def tiny(build: Callable[..., VideoTokenizer]) -> VideoTokenizer:
    return build(TOKENIZERS["tiny"])


def random_video(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 1


@torch.inference_mode()
@pytest.mark.parametrize("latents", [1, 2, 3])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 3)])
def test_round_trip_keeps_the_shape(
    model: VideoTokenizer, latents: int, rows: int, columns: int
) -> None:
    config = model.config
    num_frames = 1 + config.temporal_stride * (latents - 1)
    height, width = rows * config.spatial_stride, columns * config.spatial_stride
    video = random_video(1, 3, num_frames, height, width)
    encoded = model.encode(video)
    assert encoded.shape == (1, config.latent_channels, latents, rows, columns)
    assert model.decode(encoded).shape == video.shape
    torch.testing.assert_close(model(video), model.decode(encoded))


@torch.inference_mode()
def test_seventeen_frames_give_the_grid_of_walt(tiny: VideoTokenizer) -> None:
    assert tiny.encode(random_video(1, 3, 17, 128, 128)).shape == (1, 8, 5, 16, 16)


@torch.inference_mode()
def test_clips_do_not_depend_on_their_batch(tiny: VideoTokenizer) -> None:
    video = random_video(3, 3, 5, 16, 16)
    alone = torch.cat([tiny.encode(clip[None]) for clip in video])
    # 1e-5: other batch sizes may be blocked in another way.
    torch.testing.assert_close(tiny.encode(video), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_frames", [2, 4, 16])
def test_invalid_frame_counts_are_refused(tiny: VideoTokenizer, num_frames: int) -> None:
    with pytest.raises(ValueError, match=rf"{num_frames} frames .* 1 \+ 4 \* k .*\(1, 5, 9"):
        tiny.encode(random_video(1, 3, num_frames, 16, 16))


@pytest.mark.parametrize(("height", "width"), [(12, 16), (16, 20), (4, 16)])
def test_invalid_sizes_are_refused(tiny: VideoTokenizer, height: int, width: int) -> None:
    with pytest.raises(ValueError, match="must be a positive multiple of 8; resize or crop to"):
        tiny.encode(random_video(1, 3, 1, height, width))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_pixels_that_are_not_finite_are_refused(tiny: VideoTokenizer, value: float) -> None:
    video = random_video(2, 3, 5, 16, 16)
    video[1, 2, 4, 15, 15] = value
    with pytest.raises(ValueError, match="NaN or infinite pixels"):
        tiny.encode(video)


@pytest.mark.parametrize("scale", [255.0, 1.1])
def test_pixels_out_of_range_are_refused(tiny: VideoTokenizer, scale: float) -> None:
    video = random_video(1, 3, 1, 16, 16)
    video[0, 0, 0, 0, 0] = 1.0
    with pytest.raises(ValueError, match=r"expected \[-1, 1\]: rescale"):
        tiny.encode(scale * video)


def test_no_pixels_are_refused(tiny: VideoTokenizer) -> None:
    with pytest.raises(ValueError, match=r"shape \(0, 3, 1, 16, 16\) is empty"):
        tiny.encode(torch.zeros(0, 3, 1, 16, 16))
    with pytest.raises(ValueError, match=r"clip of 0 frames .*\(1, 5, 9"):
        tiny.encode(torch.zeros(1, 3, 0, 16, 16))


@pytest.mark.parametrize(
    "shape", [(1, 7, 1, 2, 2), (1, 9, 1, 2, 2), (0, 8, 1, 2, 2), (1, 8, 0, 2, 2)]
)
def test_latents_of_the_wrong_shape_are_refused(
    tiny: VideoTokenizer, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"must be \(b, 8, t, h, w\) with no empty axis"):
        tiny.decode(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"must be \(b, 8, t, h, w\) with no empty axis"):
        tiny.decode_chunk(torch.zeros(shape))


def test_chunks_are_checked_like_clips(tiny: VideoTokenizer) -> None:
    with pytest.raises(ValueError, match="NaN or infinite pixels"):
        tiny.encode_chunk(torch.full((1, 3, 1, 16, 16), float("nan")))
    with pytest.raises(ValueError, match="must be a positive multiple of 8"):
        tiny.encode_chunk(torch.zeros(1, 3, 1, 12, 16))
    _, cache = tiny.encode_chunk(torch.zeros(1, 3, 1, 16, 16))
    with pytest.raises(ValueError, match=r"expected \[-1, 1\]: rescale"):
        tiny.encode_chunk(torch.full((1, 3, 4, 16, 16), 2.0), cache)


def test_the_ends_of_the_range_are_pixels(tiny: VideoTokenizer) -> None:
    video = torch.ones(1, 3, 1, 16, 16)
    video[..., 8:] = -1
    assert tiny.encode(video).isfinite().all()


def values_by_channel(latents: list[Tensor]) -> np.ndarray:
    return np.concatenate([v.numpy().swapaxes(0, 1).reshape(v.shape[1], -1) for v in latents], 1)


def test_latent_statistics_are_those_of_the_clips(build: Callable[..., VideoTokenizer]) -> None:
    tiny = build(TOKENIZERS["tiny"]).double()
    clips = [
        random_video(2, 3, 5, 16, 16, seed=1).double(),
        0.3 * random_video(1, 3, 9, 24, 16, seed=2).double(),
        0.9 + 0.1 * random_video(3, 3, 1, 8, 8, seed=3).double(),
    ]
    with torch.no_grad():
        raw = [tiny.encode(clip) for clip in clips]
    values = values_by_channel(raw)
    tiny.fit_latent_statistics(clip for clip in clips)
    np.testing.assert_allclose(tiny.latent_mean.numpy(), values.mean(axis=1), atol=1e-12)
    np.testing.assert_allclose(tiny.latent_std.numpy(), values.std(axis=1), atol=1e-12)
    with torch.no_grad():
        normal = [tiny.encode(clip, normalize=True) for clip in clips]
    values = values_by_channel(normal)
    np.testing.assert_allclose(values.mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(values.std(axis=1), 1, atol=1e-12)
    with torch.no_grad():
        expected, video = tiny.decode(raw[0]), tiny.decode(normal[0], denormalize=True)
    torch.testing.assert_close(video, expected)


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [1, 3], [2, 2]])
def test_latent_statistics_do_not_depend_on_the_batches(
    build: Callable[..., VideoTokenizer], sizes: list[int]
) -> None:
    # The clips differ in contrast: a mean of means or of deviations would show.
    contrast = torch.tensor([0.1, 0.2, 0.5, 1]).reshape(4, 1, 1, 1, 1)
    clips = random_video(4, 3, 5, 16, 16) * contrast
    whole, parts = build(TOKENIZERS["tiny"]), build(TOKENIZERS["tiny"])
    whole.fit_latent_statistics([clips])
    parts.fit_latent_statistics(clips.split(sizes))
    # 1e-5: the latents themselves round differently in other batches.
    torch.testing.assert_close(whole.latent_mean, parts.latent_mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whole.latent_std, parts.latent_std, atol=1e-5, rtol=1e-5)


def test_latent_statistics_take_one_pass(build: Callable[..., VideoTokenizer]) -> None:
    seen: list[int] = []

    def clips() -> Iterator[Tensor]:
        for i in range(3):
            seen.append(i)
            yield random_video(1, 3, 5, 16, 16, seed=i)

    build(TOKENIZERS["tiny"]).fit_latent_statistics(clips())
    assert seen == [0, 1, 2]


def test_latent_statistics_leave_the_model_trainable(
    build: Callable[..., VideoTokenizer],
) -> None:
    tiny = build(TOKENIZERS["tiny"])
    tiny.fit_latent_statistics([random_video(1, 3, 5, 16, 16)])
    tiny.encode(random_video(1, 3, 5, 16, 16), normalize=True).square().sum().backward()
    assert tiny.encoder.conv_in.conv.weight.grad is not None


def test_unfitted_statistics_change_nothing(tiny: VideoTokenizer) -> None:
    video = random_video(1, 3, 5, 16, 16)
    assert torch.equal(tiny.encode(video, normalize=True), tiny.encode(video))


def test_latent_statistics_need_clips(tiny: VideoTokenizer) -> None:
    with pytest.raises(ValueError, match="no clips to measure"):
        tiny.fit_latent_statistics([])


def test_latent_channels_must_vary(build: Callable[..., VideoTokenizer]) -> None:
    tiny = build(TOKENIZERS["tiny"])
    with torch.no_grad():
        tiny.encoder.conv_out.conv.weight[3] = 0
    with pytest.raises(ValueError, match=r"latent channels \[3\] do not vary"):
        tiny.fit_latent_statistics([random_video(1, 3, 5, 16, 16)])
    assert torch.equal(tiny.latent_std, torch.ones(8))


def test_every_parameter_gets_a_gradient(build: Callable[..., VideoTokenizer]) -> None:
    tiny = build(TOKENIZERS["tiny"])
    video = random_video(1, 3, 5, 16, 16)
    reconstruction_loss(tiny(video), video).backward()
    for name, parameter in tiny.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.slow
def test_learns_one_batch() -> None:
    torch.manual_seed(0)
    tiny = VideoTokenizer(BASE)
    ramp = torch.linspace(-1, 1, 16)
    video = (ramp[:, None] * ramp).expand(2, 3, 5, 16, 16)
    optimizer = torch.optim.Adam(tiny.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = reconstruction_loss(tiny(video), video)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * video.square().mean().item()
    assert losses[-1] < 0.25 * losses[0]


def test_gradient_checkpointing_changes_no_number(
    build: Callable[..., VideoTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    video = random_video(1, 3, 5, 16, 16)
    calls = []

    def spy(*args: object, **options: object) -> Tensor:
        calls.append(args)
        return checkpoint(*args, **options)

    checkpoint = layers.checkpoint
    monkeypatch.setattr(layers, "checkpoint", spy)
    results = []
    for on in (False, True):
        model = build(BASE)
        assert not model.gradient_checkpointing
        model.gradient_checkpointing = on
        assert model.gradient_checkpointing == on
        loss = reconstruction_loss(model(video), video)
        loss.backward()
        results.append((loss.detach(), [parameter.grad for parameter in model.parameters()]))
        # Five blocks in each network: one in each of the four stages and one in the middle.
        assert len(calls) == (10 if on else 0)
    (loss, gradients), (again, others) = results
    assert torch.equal(loss, again)
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(gradient, other)


def test_gradient_checkpointing_keeps_fewer_activations(
    build: Callable[..., VideoTokenizer],
) -> None:
    model, video = build(BASE), random_video(1, 3, 5, 32, 32)
    saved = []
    for on in (False, True):
        model.gradient_checkpointing = on
        sizes: list[int] = []

        def keep(x: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            model(video)
        saved.append(sum(sizes))
    assert saved[1] < 0.5 * saved[0]


def test_gradient_checkpointing_has_no_part_in_inference(
    build: Callable[..., VideoTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, video = build(BASE), random_video(1, 3, 5, 16, 16)
    model.gradient_checkpointing = True
    monkeypatch.setattr(layers, "checkpoint", lambda *args, **options: pytest.fail("called"))
    with torch.no_grad():
        model(video)


def test_quantised_latents_are_codes_with_an_index(build: Callable[..., VideoTokenizer]) -> None:
    model = build(LFQ)
    video = random_video(2, 3, 9, 16, 16)
    with torch.no_grad():
        codes, raw = model.encode(video), model.encoder(video)
    assert torch.equal(codes, torch.where(raw > 0, 1.0, -1.0))
    indices = codes_to_indices(codes)
    assert indices.shape == (2, 3, 2, 2)
    assert len(indices.unique()) > 4
    assert torch.equal(indices_to_codes(indices, 6), codes)
    with torch.no_grad():
        assert torch.equal(model(video), model.decode(indices_to_codes(indices, 6)))


def test_gradients_pass_the_quantiser(build: Callable[..., VideoTokenizer]) -> None:
    """As if it were not there: what the decoder gives back reaches the raw latents unchanged."""
    model, video = build(LFQ), random_video(1, 3, 5, 16, 16)
    reconstruction_loss(model(video), video).backward()
    found = [parameter.grad.clone() for parameter in model.encoder.parameters()]
    model.zero_grad()
    raw = model.encoder(video)
    codes = model.encode(video).detach().requires_grad_()
    reconstruction_loss(model.decode(codes), video).backward()
    raw.backward(codes.grad)
    for gradient, parameter in zip(found, model.encoder.parameters(), strict=True):
        assert gradient.any()
        torch.testing.assert_close(gradient, parameter.grad)


def test_a_copy_is_the_same_model(tiny: VideoTokenizer) -> None:
    other, video = copy.deepcopy(tiny), random_video(1, 3, 5, 16, 16)
    assert other.config == tiny.config
    with torch.no_grad():
        assert torch.equal(other.encode(video), tiny.encode(video))


def test_training_mode_changes_nothing(build: Callable[..., VideoTokenizer]) -> None:
    model, video = build(BASE), random_video(1, 3, 5, 16, 16)
    with torch.no_grad():
        expected = model.eval()(video)
        assert torch.equal(model.train()(video), expected)
