"""The tokenizer as a whole: causality, shapes, statistics, and what it refuses."""

import dataclasses

import pytest
import torch
from torch import Tensor

from walt_tokenizer import TOKENIZERS, TokenizerConfig, VideoTokenizer, reconstruction_loss

BASE = TokenizerConfig(base_channels=8, num_res_blocks=1, norm_groups=4, latent_channels=4)
CONFIGS = {
    "tiny": TOKENIZERS["tiny"],
    "kernel-4": dataclasses.replace(BASE, down_kernel=4),
    "early-time": dataclasses.replace(BASE, temporal_strides=(2, 2, 1)),
    "stride-8": dataclasses.replace(BASE, temporal_strides=(2, 2, 2)),
    "per-frame": dataclasses.replace(BASE, temporal_strides=(1, 1, 1)),
    "two-stages": dataclasses.replace(BASE, channel_multipliers=(1, 2), temporal_strides=(2,)),
}


def build(config: TokenizerConfig) -> VideoTokenizer:
    """A tokenizer in which every parameter is random, also those that start at zero or one."""
    torch.manual_seed(0)
    model = VideoTokenizer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 or not parameter.any():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> VideoTokenizer:
    return build(CONFIGS[request.param])


@pytest.fixture(scope="module")
def tiny() -> VideoTokenizer:
    return build(TOKENIZERS["tiny"])


def random_video(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 1


@torch.inference_mode()
def test_later_frames_never_change_earlier_latents(model: VideoTokenizer) -> None:
    stride = model.config.temporal_stride
    num_frames = 1 + 2 * stride
    video = random_video(1, 3, num_frames, 16, 16)
    latents = model.encode(video)
    for frame in range(num_frames):
        changed = video.clone()
        changed[:, :, frame] = random_video(1, 3, 16, 16, seed=1 + frame)
        other = model.encode(changed)
        own = (frame + stride - 1) // stride
        assert torch.equal(other[:, :, :own], latents[:, :, :own]), f"frame {frame}"
        assert not torch.equal(other[:, :, own], latents[:, :, own]), f"frame {frame}"


@torch.inference_mode()
def test_later_latents_never_change_earlier_frames(model: VideoTokenizer) -> None:
    stride, channels = model.config.temporal_stride, model.config.latent_channels
    latents = random_video(1, channels, 3, 2, 2)
    video = model.decode(latents)
    for latent in range(3):
        changed = latents.clone()
        changed[:, :, latent] = random_video(1, channels, 2, 2, seed=1 + latent)
        other = model.decode(changed)
        first = max(0, stride * (latent - 1) + 1)
        assert torch.equal(other[:, :, :first], video[:, :, :first]), f"latent {latent}"
        assert not torch.equal(other[:, :, first], video[:, :, first]), f"latent {latent}"


@torch.inference_mode()
def test_an_image_is_the_first_latent_of_a_video(model: VideoTokenizer) -> None:
    video = random_video(2, 3, 1 + 2 * model.config.temporal_stride, 16, 16)
    image = model.encode(video[:, :, :1])
    assert image.shape[2] == 1
    # 1e-5: a convolution over one frame may be blocked in another way than over many.
    torch.testing.assert_close(image, model.encode(video)[:, :, :1], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_one_latent_decodes_to_the_first_frame_of_the_video(model: VideoTokenizer) -> None:
    latents = random_video(2, model.config.latent_channels, 3, 2, 2)
    image = model.decode(latents[:, :, :1])
    assert image.shape[2] == 1
    # 1e-5: as above.
    torch.testing.assert_close(image, model.decode(latents)[:, :, :1], atol=1e-5, rtol=1e-5)


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


def test_the_ends_of_the_range_are_pixels(tiny: VideoTokenizer) -> None:
    video = torch.ones(1, 3, 1, 16, 16)
    video[..., 8:] = -1
    assert tiny.encode(video).isfinite().all()


def test_latent_statistics_are_those_of_the_clips() -> None:
    tiny = build(TOKENIZERS["tiny"])
    clips = [random_video(2, 3, 5, 16, 16, seed=1), 0.3 * random_video(1, 3, 9, 24, 16, seed=2)]
    with torch.inference_mode():
        raw = [tiny.encode(clip) for clip in clips]
    values = torch.cat([latents.movedim(1, 0).flatten(1) for latents in raw], dim=1)
    tiny.fit_latent_statistics(iter(clips))
    torch.testing.assert_close(tiny.latent_mean, values.mean(dim=1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        tiny.latent_std, values.std(dim=1, correction=0), atol=1e-5, rtol=1e-5
    )
    with torch.inference_mode():
        normal = [tiny.encode(clip, normalize=True) for clip in clips]
    values = torch.cat([latents.movedim(1, 0).flatten(1) for latents in normal], dim=1)
    torch.testing.assert_close(values.mean(dim=1), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(values.std(dim=1, correction=0), torch.ones(8), atol=1e-4, rtol=0)
    with torch.inference_mode():
        expected, video = tiny.decode(raw[0]), tiny.decode(normal[0], denormalize=True)
    torch.testing.assert_close(video, expected, atol=1e-4, rtol=1e-4)


def test_latent_statistics_do_not_depend_on_the_batches() -> None:
    clips = random_video(4, 3, 5, 16, 16)
    whole, single = build(TOKENIZERS["tiny"]), build(TOKENIZERS["tiny"])
    whole.fit_latent_statistics([clips])
    single.fit_latent_statistics(clip[None] for clip in clips)
    torch.testing.assert_close(whole.latent_mean, single.latent_mean, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(whole.latent_std, single.latent_std, atol=1e-6, rtol=1e-5)


def test_latent_statistics_leave_the_model_trainable() -> None:
    tiny = build(TOKENIZERS["tiny"])
    tiny.fit_latent_statistics([random_video(1, 3, 5, 16, 16)])
    tiny.encode(random_video(1, 3, 5, 16, 16), normalize=True).square().sum().backward()


def test_unfitted_statistics_change_nothing(tiny: VideoTokenizer) -> None:
    video = random_video(1, 3, 5, 16, 16)
    assert torch.equal(tiny.encode(video, normalize=True), tiny.encode(video))


def test_latent_statistics_need_clips(tiny: VideoTokenizer) -> None:
    with pytest.raises(ValueError, match="no clips to measure"):
        tiny.fit_latent_statistics([])


def test_latent_channels_must_vary() -> None:
    tiny = build(TOKENIZERS["tiny"])
    with torch.no_grad():
        tiny.encoder.conv_out.conv.weight[3] = 0
    with pytest.raises(ValueError, match=r"latent channels \[3\] do not vary"):
        tiny.fit_latent_statistics([random_video(1, 3, 5, 16, 16)])
    assert torch.equal(tiny.latent_std, torch.ones(8))


def test_every_parameter_gets_a_gradient() -> None:
    tiny = build(TOKENIZERS["tiny"])
    video = random_video(1, 3, 5, 16, 16)
    reconstruction_loss(tiny(video), video).backward()
    for name, parameter in tiny.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


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
