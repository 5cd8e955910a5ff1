"""The discriminator: its size, its blur, its precision, and what reaches its weights."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from walt_tokenizer.discriminator import Discriminator, DiscriminatorConfig, blur_pool
from walt_tokenizer.losses import discriminator_loss, r1_penalty

SMALL = DiscriminatorConfig(base_channels=8, num_frames=5, height=32, width=32)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def smooth(config: DiscriminatorConfig, batch: int = 2, seed: int = 0) -> Tensor:
    """Clips whose neighbouring pixels are alike, as those of films are."""
    coarse = random(batch, 3, *(max(1, size // 8) for size in config.grids[0]), seed=seed)
    return F.interpolate(coarse, config.grids[0], mode="trilinear")


def build(config: DiscriminatorConfig = SMALL, seed: int = 0) -> Discriminator:
    torch.manual_seed(seed)
    return Discriminator(config)


def num_parameters(config: DiscriminatorConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in Discriminator(config).parameters())


def test_parameters_of_the_published_size() -> None:
    assert num_parameters(DiscriminatorConfig()) == 61_341_569
    with torch.device("meta"):
        names = Discriminator(DiscriminatorConfig()).state_dict()
    assert len(names) == 2 + 5 * 5 + 2 + 2 + 2, "weights and biases only: the blur has none"


@pytest.mark.parametrize(("frames", "size"), [(1, 32), (5, 32), (17, 64), (4, 50), (33, 128)])
def test_grids_halve_and_round_up(frames: int, size: int) -> None:
    config = DiscriminatorConfig(base_channels=8, num_frames=frames, height=size, width=size)
    for before, after in zip(config.grids[:-1], config.grids[1:], strict=True):
        assert after == tuple(-(-n // 2) for n in before)
    assert len(config.grids) == 6
    features = 32 * np.prod(config.grids[-1])
    with torch.device("meta"):
        assert Discriminator(config).hidden.weight.shape == (32, features)


@pytest.mark.parametrize(
    ("frames", "height", "width"), [(1, 32, 32), (5, 32, 32), (4, 17, 23), (2, 1, 3)]
)
def test_takes_any_configured_size(frames: int, height: int, width: int) -> None:
    config = DiscriminatorConfig(
        base_channels=4, channel_multipliers=(1, 2), num_frames=frames, height=height, width=width
    )
    logits = build(config)(random(3, 3, frames, height, width))
    assert logits.shape == (3,)
    assert len(set(logits.tolist())) == 3


def numpy_blur(x: np.ndarray) -> np.ndarray:
    """Three strided correlations with [1, 2, 1] / 4 on an array with repeated edges."""
    for axis in (2, 3, 4):
        size = x.shape[axis]
        padding = [(0, 0)] * 5
        padding[axis] = (1, 1)
        padded = np.pad(x, padding, mode="edge")
        centres = np.arange(0, size, 2)
        x = sum(
            weight * padded.take(centres + shift, axis=axis)
            for shift, weight in enumerate((0.25, 0.5, 0.25))
        )
    return x


@pytest.mark.parametrize("grid", [(1, 7, 8), (5, 1, 9), (17, 16, 15), (2, 2, 2), (1, 1, 1)])
def test_blur_is_the_separable_filter(grid: tuple[int, int, int]) -> None:
    x = random(2, 3, *grid).double()
    y = blur_pool(x)
    assert y.shape[2:] == tuple(-(-n // 2) for n in grid)
    torch.testing.assert_close(y, torch.from_numpy(numpy_blur(x.numpy())))
    assert torch.equal(blur_pool(torch.ones_like(x)), torch.ones_like(y))


def test_blur_of_an_image_is_the_blur_of_a_still_clip() -> None:
    image = random(1, 2, 1, 9, 8)
    still = blur_pool(image.expand(-1, -1, 5, -1, -1))
    torch.testing.assert_close(still, blur_pool(image).expand_as(still))


def test_is_not_causal() -> None:
    """The logit sees all frames and pixels: every one has a gradient."""
    video = random(1, 3, *SMALL.grids[0]).requires_grad_()
    (gradient,) = torch.autograd.grad(build()(video).sum(), video)
    assert (gradient != 0).float().mean() > 0.99


def test_clips_do_not_mix() -> None:
    model, video = build(), random(3, 3, *SMALL.grids[0])
    other = video.clone()
    other[1] = -other[1]
    changed = (model(other) - model(video)).abs()
    assert changed[1] > 1e-4
    # A batch of another content may sum in another order.
    torch.testing.assert_close(changed[[0, 2]], torch.zeros(2), rtol=0, atol=1e-6)


def test_is_a_composition_of_plain_operations() -> None:
    """The same network from functions, blurred by convolutions: an independent forward pass."""
    model, video = build().double(), random(2, 3, *SMALL.grids[0]).double()

    def blur(x: Tensor) -> Tensor:
        kernel = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype) / 4
        cube = kernel[:, None, None] * kernel[:, None] * kernel
        cube = cube.expand(x.shape[1], 1, 3, 3, 3)
        padded = F.pad(x, (1,) * 6, mode="replicate")
        return F.conv3d(padded, cube, stride=2, groups=x.shape[1])

    def act(x: Tensor) -> Tensor:
        return torch.maximum(x, 0.2 * x)

    p = {name: value.detach() for name, value in model.state_dict().items()}
    x = act(F.conv3d(video, p["conv_in.weight"], p["conv_in.bias"], padding=1))
    for i in range(5):
        w = {k.removeprefix(f"blocks.{i}."): v for k, v in p.items() if f"blocks.{i}." in k}
        h = blur(act(F.conv3d(x, w["conv1.weight"], w["conv1.bias"], padding=1)))
        h = act(F.conv3d(h, w["conv2.weight"], w["conv2.bias"], padding=1))
        x = (h + F.conv3d(blur(x), w["skip.weight"])) / 2**0.5
    x = act(F.conv3d(x, p["conv_out.weight"], p["conv_out.bias"], padding=1)).flatten(1)
    x = act(x @ p["hidden.weight"].T + p["hidden.bias"])
    expected = (x @ p["logit.weight"].T + p["logit.bias"])[:, 0]
    torch.testing.assert_close(model(video), expected)


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        DiscriminatorConfig(base_channels=8, num_frames=1, height=32, width=32),
        DiscriminatorConfig(base_channels=8, num_frames=9, height=64, width=64),
        DiscriminatorConfig(
            base_channels=8, channel_multipliers=(2, 4, 4), num_frames=5, height=32, width=32
        ),
    ],
    ids=["small", "image", "longer", "shallow"],
)
def test_new_logits_are_of_the_order_of_one(config: DiscriminatorConfig) -> None:
    """Over networks; He's variance without regard for padding and blur gives 0.006 at `small`."""
    logits = torch.stack([build(config, seed)(smooth(config)) for seed in range(12)])
    assert 0.2 < logits.std() < 2
    assert logits.abs().max() < 5
    # Clips are told apart from the start, so that gradients have something to grow from.
    assert logits.std(dim=1).mean() > 0.02


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_computes_in_float32(dtype: torch.dtype, autocast: bool) -> None:
    model, video = build(), random(2, 3, *SMALL.grids[0]).to(dtype)
    expected = model(video.float())
    seen: list[torch.dtype] = []
    for module in model.modules():
        if isinstance(module, nn.Conv3d | nn.Linear):
            module.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits = model(video)
    assert seen == [torch.float32] * len(seen) == [torch.float32] * 19
    assert torch.equal(logits, expected)


def test_gradients_reach_every_parameter() -> None:
    model = build()
    real, fake = smooth(SMALL, seed=1), smooth(SMALL, seed=2)
    discriminator_loss(model(real), model(fake)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # Real and fake pull the last bias in opposite directions, nearly cancelling.
        assert parameter.grad.abs().max() > 0, name


def test_gradients_of_the_penalty_reach_every_weight() -> None:
    """The network is linear between kinks, so its input gradient has no slope in the biases."""
    model = build()
    r1_penalty(model, smooth(SMALL)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.abs().max() > 0) == name.endswith("weight"), name


@pytest.mark.slow
def test_learns_to_tell_clips_apart() -> None:
    """Thirty steps on two kinds of clips, which differ in how they move."""
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.0, 0.99))

    def clips(seed: int) -> tuple[Tensor, Tensor]:
        still = random(4, 3, 1, 32, 32, seed=seed).expand(-1, -1, 5, -1, -1)
        return still, still.roll(1, 0) * torch.tensor([1.0, -1, 1, -1, 1])[:, None, None]

    for step in range(30):
        real, fake = clips(step)
        loss = discriminator_loss(model(real), model(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    real, fake = clips(1000)
    assert model(real).min() > model(fake).max()


@pytest.mark.parametrize("shape", [(2, 3, 5, 32, 30), (2, 3, 4, 32, 32), (2, 3, 1, 32, 32)])
def test_another_clip_size_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(b, 3, 5, 32, 32\).*num_frames, height and width"):
        build()(torch.zeros(shape))


def test_low_precision_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"bfloat16, expected float32: keep it in float\(\)"):
        build().bfloat16()(torch.zeros(1, 3, 5, 32, 32))


@pytest.mark.parametrize("name", ["base_channels", "num_frames", "height", "width"])
@pytest.mark.parametrize("value", [0, -8, True])
def test_numbers_must_be_positive(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"{name} {value} must be a positive whole number"):
        DiscriminatorConfig(**{name: value})


@pytest.mark.parametrize("multipliers", [(), (2, 0), (2, -4)])
def test_multipliers_must_be_positive(multipliers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one positive whole number for each residual block"):
        DiscriminatorConfig(channel_multipliers=multipliers)
