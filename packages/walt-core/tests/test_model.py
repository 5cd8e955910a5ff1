"""The denoiser as a whole: what sees what, how it starts, and which grids it takes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from walt_core import WALT_SIZES, Conditions, Walt, WaltConfig

Random = Callable[..., Tensor]
Build = Callable[..., Walt]
TIMESTEP = torch.tensor([300, 10])
# Double precision, in another order or blocked in another way.
CLOSE = {"atol": 1e-10, "rtol": 1e-10}


@pytest.fixture(scope="module")
def video(build: Build, small: WaltConfig) -> Walt:
    return build(small).double()


@pytest.fixture(scope="module")
def image(build: Build, small: WaltConfig) -> Walt:
    return build(dataclasses.replace(small, windows="spatial")).double()


# --- What sees what ------------------------------------------------------------------------------


@torch.no_grad()
def frames_seen(model: Walt, latents: Tensor, conditions: Conditions, estimate: Tensor) -> Tensor:
    """Which output frames (rows) change, to the bit, with which input frames (columns)."""
    output = model(latents, TIMESTEP, conditions, estimate)
    columns = []
    for frame in range(5):
        changed = latents.clone()
        changed[:, :, frame] += 1
        found = model(changed, TIMESTEP, conditions, estimate)
        columns.append((found != output).any(dim=4).any(dim=3).any(dim=1))
    # The same for both samples.
    seen = torch.stack(columns, dim=2)
    assert torch.equal(seen[0], seen[1])
    return seen[0]


def test_image_twin_never_mixes_frames(
    image: Walt, latents: Tensor, told: tuple[Conditions, Tensor]
) -> None:
    """Also where it is told of text, class, past frames and an estimate."""
    assert torch.equal(frames_seen(image, latents, *told), torch.eye(5, dtype=torch.bool))


def test_video_model_mixes_all_frames(
    video: Walt, latents: Tensor, told: tuple[Conditions, Tensor]
) -> None:
    assert frames_seen(video, latents, *told).all()


def test_text_attention_of_the_video_model_mixes_no_frames(
    video: Walt, latents: Tensor, told: tuple[Conditions, Tensor]
) -> None:
    """Without self-attention in time nothing does, for the text's window is spatial everywhere."""
    model = Walt(video.config).double()
    model.load_state_dict(video.state_dict())
    with torch.no_grad():
        for block in model.blocks[1::2]:
            nn.init.zeros_(block.attention.proj.weight)
    assert torch.equal(frames_seen(model, latents, *told), torch.eye(5, dtype=torch.bool))


def test_image_twin_treats_frames_as_images_but_for_their_time_slot(
    build: Build, small: WaltConfig, latents: Tensor, told: tuple[Conditions, Tensor]
) -> None:
    model = build(dataclasses.replace(small, windows="spatial")).double()
    conditions = told[0].without_past()
    with torch.no_grad():
        model.positions.time.copy_(model.positions.time[:1].expand(5, -1))
        output = model(latents, TIMESTEP, conditions)
        for frame in range(5):
            one = slice(frame, frame + 1)
            alone = model(latents[:, :, one], TIMESTEP, conditions)
            torch.testing.assert_close(alone, output[:, :, one], **CLOSE)


def test_samples_of_a_batch_do_not_meet(
    video: Walt, latents: Tensor, told: tuple[Conditions, Tensor]
) -> None:
    conditions, estimate = told
    with torch.no_grad():
        together = video(latents, TIMESTEP, conditions, estimate)
        for row in range(2):
            one = slice(row, row + 1)
            values = {
                field.name: getattr(conditions, field.name)[one]
                for field in dataclasses.fields(conditions)
            }
            alone = video(latents[one], TIMESTEP[one], Conditions(**values), estimate[one])
            torch.testing.assert_close(alone, together[one], **CLOSE)


def test_image_in_the_video_model_attends_in_spatial_layers_alone(
    video: Walt, latents: Tensor, told: tuple[Conditions, Tensor]
) -> None:
    """Without the spatial layers' attention and that to text, no place of it sees another."""
    model = Walt(dataclasses.replace(video.config, text_width=0)).double()
    model.load_state_dict(video.state_dict(), strict=False)
    with torch.no_grad():
        for block in model.blocks[::2]:
            nn.init.zeros_(block.attention.proj.weight)
    frame = latents[:, :, :1]
    changed = frame.clone()
    changed[..., 1, 2] += 1
    with torch.no_grad():
        differs = (model(changed, TIMESTEP) != model(frame, TIMESTEP)).any(dim=1)
    expected = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    expected[..., 1, 2] = True
    assert torch.equal(differs, expected)


# --- How it starts -------------------------------------------------------------------------------


@pytest.mark.parametrize("position_bias", ["joint", "axial"])
def test_blocks_of_a_new_model_are_the_identity(
    small: WaltConfig, latents: Tensor, told: tuple[Conditions, Tensor], position_bias: Any
) -> None:
    """Gates start at zero, whatever it is told, and so does the output."""
    torch.manual_seed(0)
    model = Walt(dataclasses.replace(small, position_bias=position_bias)).double()
    streams: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, args, out: streams.extend([args[0], out]))
    with torch.no_grad():
        output = model(latents, TIMESTEP, *told)
    assert all(torch.equal(stream, streams[0]) for stream in streams[1:])
    assert not output.any()
    for name, table in model.named_parameters():
        if "attention.bias.table" in name:
            assert not table.any()


def test_every_parameter_but_the_null_ones_gets_a_gradient(
    video: Walt, latents: Tensor, told: tuple[Conditions, Tensor]
) -> None:
    video.zero_grad()
    video(latents, TIMESTEP, *told).square().mean().backward()
    for name, parameter in video.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    video.zero_grad()


def test_a_new_model_learns_from_its_first_step(small: WaltConfig, latents: Tensor) -> None:
    """What starts at zero gets a gradient as soon as the output layer is not zero."""
    torch.manual_seed(0)
    model = Walt(small).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(4):
        loss = (model(latents, TIMESTEP) - latents).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    frozen = {n for n, p in model.named_parameters() if torch.equal(p, before[n])}
    # What reads null conditions: text, and the low-rank path one step later than its other half.
    assert frozen == {"text.weight"}


def test_positions_and_classes_start_small_and_different(small: WaltConfig) -> None:
    model = Walt(dataclasses.replace(small, width=64))
    assert model.classes is not None
    for table in (model.positions.space, model.positions.time, model.classes.weight):
        # 192 values or more: 4 standard errors of the deviation.
        assert 0.016 < table.std().item() < 0.024


# --- Buffers and grids ---------------------------------------------------------------------------


def test_statistics_of_the_latents_travel_with_the_weights(small: WaltConfig) -> None:
    model, other = Walt(small), Walt(small)
    assert torch.equal(model.latent_mean, torch.zeros(4))
    assert torch.equal(model.latent_std, torch.ones(4))
    model.latent_mean.copy_(torch.arange(4.0))
    model.latent_std.fill_(2.0)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.latent_mean, torch.arange(4.0))
    assert torch.equal(other.latent_std, torch.full((4,), 2.0))
    assert {"latent_mean", "latent_std"}.isdisjoint(n for n, _ in model.named_parameters())


def test_statistics_of_the_latents_are_a_record(video: Walt, latents: Tensor) -> None:
    """The model reads latents that are normalised already."""
    with torch.no_grad():
        expected = video(latents, TIMESTEP)
        mean = video.latent_mean.clone()
        video.latent_mean.add_(1.0)
        assert torch.equal(video(latents, TIMESTEP), expected)
        video.latent_mean.copy_(mean)


@pytest.mark.parametrize("name", ["nano", "tiny"])
def test_sizes_for_a_cpu_run(name: str) -> None:
    config = WALT_SIZES[name]
    latents = torch.zeros(1, config.latent_channels, *config.latent_size)
    assert Walt(config)(latents, torch.tensor([0])).shape == latents.shape


@pytest.mark.parametrize("name", WALT_SIZES)
def test_named_sizes_fit_their_shapes(name: str) -> None:
    """On the meta device: two layers of each, with an image beside the clip."""
    config = dataclasses.replace(WALT_SIZES[name], depth=2, attention="math")
    with torch.device("meta"):
        model = Walt(config)
    for frames in (config.latent_size[0], 1):
        x = torch.zeros(1, frames, *config.latent_size[1:], config.width, device="meta")
        condition = torch.zeros(1, config.width, device="meta")
        *_, out = model.stream(x, condition, Conditions(), 2)
        assert out.shape == x.shape


@pytest.mark.parametrize(
    "grid",
    # Larger, smaller than a window on one axis or all, one frame, one place.
    [(5, 8, 4), (10, 4, 8), (1, 8, 8), (3, 4, 4), (5, 2, 4), (2, 1, 1), (1, 1, 1)],
)
@pytest.mark.parametrize("position_bias", ["joint", "axial"])
def test_grids_that_windows_divide_or_are_cut_to(
    build: Build,
    small: WaltConfig,
    random: Random,
    grid: tuple[int, int, int],
    position_bias: Any,
) -> None:
    model = build(dataclasses.replace(small, position_bias=position_bias)).double()
    output = model(random(2, 4, *grid), TIMESTEP)
    assert output.shape == (2, 4, *grid)
    assert output.isfinite().all()


@pytest.mark.parametrize("grid", [(7, 4, 4), (5, 6, 4), (1, 4, 6)])
def test_grids_that_the_windows_do_not_divide(
    video: Walt, random: Random, grid: tuple[int, int, int]
) -> None:
    with pytest.raises(ValueError, match=r"window .* must divide the latent grid \(t, h, w\)="):
        video(random(2, 4, *grid), TIMESTEP)


def test_wrong_latent_channels(video: Walt, random: Random) -> None:
    with pytest.raises(ValueError, match="latents have 8 channels, expected 4"):
        video(random(2, 8, 5, 4, 4), TIMESTEP)


def test_latents_of_another_type(video: Walt, latents: Tensor) -> None:
    with pytest.raises(ValueError, match=r"float32 but the weights are torch.float64; convert"):
        video(latents.float(), TIMESTEP)


@pytest.mark.parametrize("timestep", [-1, 1000])
def test_timesteps_out_of_range(video: Walt, latents: Tensor, timestep: int) -> None:
    with pytest.raises(ValueError, match=f"timestep {timestep} must be 0"):
        video(latents, torch.tensor([0, timestep]))
