"""Conditions: what each one changes, what may not change, and what is refused."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from walt_core import Conditions, Walt, WaltConfig

Random = Callable[..., Tensor]
Build = Callable[..., Walt]
TIMESTEP = torch.tensor([300, 10])
VALID = torch.tensor([[True, True, True, False], [True, False, True, False]])
# Double precision, in another order or blocked in another way.
CLOSE = {"atol": 1e-10, "rtol": 1e-10}


@pytest.fixture(scope="module")
def model(build: Build, small: WaltConfig) -> Walt:
    """A denoiser that can be told everything, in double precision."""
    return build(small).double()


@torch.no_grad()
def predict(model: Walt, latents: Tensor, conditions: Conditions | None = None) -> Tensor:
    return model(latents, TIMESTEP, conditions)


# --- Null conditions -----------------------------------------------------------------------------


def test_no_conditions_are_null_conditions(model: Walt, latents: Tensor) -> None:
    """Class -1, one text token of zero states, no known frames, an estimate of zeros."""
    expected = predict(model, latents)
    assert torch.equal(predict(model, latents, Conditions()), expected)
    null = Conditions(
        classes=torch.tensor([-1, -1]),
        text=torch.zeros(2, 1, 8, dtype=torch.float64),
        past=latents,
        past_frames=torch.tensor([0, 0]),
    )
    torch.testing.assert_close(predict(model, latents, null), expected, **CLOSE)
    with torch.no_grad():
        told = model(latents, TIMESTEP, estimate=torch.zeros_like(latents))
    torch.testing.assert_close(told, expected, **CLOSE)


def test_the_null_text_is_the_bias_of_the_text_projection(
    model: Walt, latents: Tensor, random: Random
) -> None:
    """Many zero tokens are one: attention to text of equal tokens only counts them."""
    assert model.text is not None
    seen: list[Tensor] = []
    handle = model.blocks[0].register_forward_hook(lambda _, args, __: seen.append(args[3]))
    predict(model, latents)
    handle.remove()
    assert torch.equal(seen[0], model.text.bias.expand(2, 1, -1))


@pytest.mark.parametrize("name", ["classes", "text", "past", "estimate"])
def test_every_condition_changes_the_output_of_its_sample_alone(
    model: Walt, latents: Tensor, everything: Conditions, random: Random, name: str
) -> None:
    changes: dict[str, Any] = {
        "classes": {"classes": torch.tensor([2, 1])},
        "text": {"text": everything.text.clone()},
        "past": {"past": everything.past.clone()},
        "estimate": {},
    }
    for value in changes[name].values():
        if value.is_floating_point():
            value[1] += random(*value.shape[1:], seed=9)
    estimate = random(2, 4, 5, 4, 4, seed=3)
    other = estimate.clone()
    other[1] += float(name == "estimate")
    with torch.no_grad():
        expected = model(latents, TIMESTEP, everything, estimate)
        found = model(latents, TIMESTEP, dataclasses.replace(everything, **changes[name]), other)
    assert torch.equal(found[0], expected[0])
    # Every place of the other sample, by more than rounding.
    assert ((found[1] - expected[1]).abs().amax(dim=0) > 1e-6).all()


# --- Class ---------------------------------------------------------------------------------------


def test_every_class_and_the_null_class_have_their_own_row(model: Walt, latents: Tensor) -> None:
    """The class is added to the timestep; the null class is the last row of the table."""
    assert model.classes is not None
    assert model.classes.num_embeddings == 4
    embedded = model.timestep(TIMESTEP[:1])
    for label, row in [(0, 0), (1, 1), (2, 2), (-1, 3)]:
        condition = model.condition(TIMESTEP[:1], Conditions(classes=torch.tensor([label])))
        expected = embedded + model.classes.weight[row]
        torch.testing.assert_close(condition, expected, rtol=0, atol=0)
    outputs = [
        predict(model, latents, Conditions(classes=torch.tensor([label] * 2)))
        for label in (-1, 0, 1, 2)
    ]
    assert all(not torch.allclose(a, b) for i, a in enumerate(outputs) for b in outputs[:i])


# --- Text ----------------------------------------------------------------------------------------


def test_order_of_text_tokens_says_nothing(
    model: Walt, latents: Tensor, everything: Conditions
) -> None:
    assert everything.text is not None
    order = torch.tensor([3, 1, 0, 2])
    swapped = dataclasses.replace(
        everything, text=everything.text[:, order], text_valid=VALID[:, order]
    )
    expected = predict(model, latents, everything)
    torch.testing.assert_close(predict(model, latents, swapped), expected, **CLOSE)


@pytest.mark.parametrize("junk", [0.0, 1e6, float("inf"), float("nan")])
def test_text_tokens_that_do_not_count_change_nothing(
    model: Walt, latents: Tensor, everything: Conditions, junk: float
) -> None:
    """Whatever they hold, in values and gradients."""
    assert everything.text is not None
    text = everything.text.masked_fill(~VALID[..., None], junk)
    changed = dataclasses.replace(everything, text=text)
    expected = predict(model, latents, everything)
    torch.testing.assert_close(predict(model, latents, changed), expected, **CLOSE)
    model.zero_grad()
    model(latents, TIMESTEP, changed).square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.zero_grad()


@pytest.mark.parametrize("attention", ["math", "sdpa"])
def test_padded_text_is_text(
    build: Build, small: WaltConfig, latents: Tensor, everything: Conditions, attention: str
) -> None:
    model = build(dataclasses.replace(small, attention=attention)).double()
    assert everything.text is not None
    short = Conditions(text=everything.text[:, :3])
    padded = Conditions(text=everything.text, text_valid=torch.tensor([[1, 1, 1, 0]] * 2) > 0)
    expected = predict(model, latents, short)
    torch.testing.assert_close(predict(model, latents, padded), expected, **CLOSE)
    all_count = dataclasses.replace(short, text_valid=torch.ones(2, 3, dtype=torch.bool))
    torch.testing.assert_close(predict(model, latents, all_count), expected, **CLOSE)


def test_text_reaches_the_output_only_once_its_projection_is_trained(
    small: WaltConfig, latents: Tensor, everything: Conditions, random: Random
) -> None:
    """A new model's text attention adds nothing; the first gradient goes to its projection."""
    torch.manual_seed(0)
    model = Walt(dataclasses.replace(small, depth=1)).double()
    with torch.no_grad():
        model.proj_out.weight.copy_(random(*model.proj_out.weight.shape))
    text = Conditions(text=everything.text)
    assert torch.equal(predict(model, latents, text), predict(model, latents))
    model(latents, TIMESTEP, text).square().mean().backward()
    layer = model.blocks[0].cross_attention
    assert layer.proj.weight.grad.any()
    with torch.no_grad():
        layer.proj.weight.copy_(random(*layer.proj.weight.shape, seed=1))
    assert not torch.allclose(predict(model, latents, text), predict(model, latents))


# --- Past frames ---------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [0, 1, 2, 4])
def test_frames_beyond_those_that_are_known_are_not_read(
    model: Walt, latents: Tensor, random: Random, frames: int
) -> None:
    past, known = random(2, 4, 5, 4, 4, seed=1), torch.tensor([frames, frames])
    expected = predict(model, latents, Conditions(past=past, past_frames=known))
    for frame in range(5):
        changed = past.clone()
        changed[:, :, frame] = random(2, 4, 4, 4, seed=2)
        found = predict(model, latents, Conditions(past=changed, past_frames=known))
        assert torch.equal(found, expected) == (frame >= frames)


def test_known_zeros_are_not_the_unknown(model: Walt, latents: Tensor) -> None:
    """A mask says which frames are known, so that an empty frame can be one."""
    outputs = [
        predict(
            model,
            latents,
            Conditions(past=torch.zeros_like(latents), past_frames=torch.tensor([frames] * 2)),
        )
        for frames in range(3)
    ]
    torch.testing.assert_close(outputs[0], predict(model, latents), **CLOSE)
    assert not torch.allclose(outputs[1], outputs[0])
    assert not torch.allclose(outputs[2], outputs[1])


def test_channels_are_latents_estimate_past_and_mask(
    model: Walt, latents: Tensor, everything: Conditions, random: Random
) -> None:
    estimate = random(2, 4, 5, 4, 4, seed=3)
    assert everything.past is not None
    assert model.patch_embed.in_features == 4 + 4 + 4 + 1
    mask = torch.zeros(2, 1, 5, 4, 4, dtype=torch.float64)
    mask[0, :, :1] = mask[1, :, :2] = 1
    channels = torch.cat([latents, estimate, everything.past * mask, mask], dim=1)
    weight, bias = model.patch_embed.weight, model.patch_embed.bias
    expected = torch.einsum("bcthw,dc->bthwd", channels, weight) + bias
    expected = expected + model.positions((5, 4, 4))
    found = model.embed(latents, everything, estimate)
    torch.testing.assert_close(found, expected, **CLOSE)


# --- Dropping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text_valid", [None, VALID])
def test_dropping_is_giving_no_class_and_no_text(
    model: Walt, latents: Tensor, everything: Conditions, text_valid: Tensor | None
) -> None:
    """For the samples that are dropped; past frames stay known."""
    everything = dataclasses.replace(everything, text_valid=text_valid)
    told = predict(model, latents, everything)
    untold = predict(model, latents, everything.without_content())
    assert not torch.allclose(told, untold)
    for dropped in ([False, False], [True, False], [False, True], [True, True]):
        mask = torch.tensor(dropped)
        found = predict(model, latents, everything.drop(mask))
        expected = torch.where(mask[:, None, None, None, None], untold, told)
        torch.testing.assert_close(found, expected, **CLOSE)


def test_dropped_text_may_be_anything(model: Walt, latents: Tensor, everything: Conditions) -> None:
    assert everything.text is not None
    both = torch.tensor([True, True])
    broken = dataclasses.replace(everything, text=torch.full_like(everything.text, torch.nan))
    expected = predict(model, latents, everything.without_content())
    torch.testing.assert_close(predict(model, latents, broken.drop(both)), expected, **CLOSE)


def test_dropping_what_is_not_there() -> None:
    conditions = Conditions(past=torch.zeros(2, 4, 5, 4, 4), past_frames=torch.tensor([1, 1]))
    dropped = conditions.drop(torch.tensor([True, False]))
    assert (dropped.classes, dropped.text, dropped.text_valid) == (None, None, None)
    assert dropped.past is conditions.past


def test_parts_can_be_left_out(everything: Conditions) -> None:
    """The rest stays as it is, and so does the record itself."""
    past, content = everything.without_content(), everything.without_past()
    assert (past.classes, past.text, past.text_valid) == (None, None, None)
    assert past.past is everything.past
    assert past.past_frames is everything.past_frames
    assert (content.past, content.past_frames) == (None, None)
    assert content.classes is everything.classes
    assert content.text is everything.text
    assert content.text_valid is everything.text_valid


def test_conditions_follow_a_tensor(everything: Conditions) -> None:
    """States and latents get its type; classes, masks and counts keep theirs."""
    moved = everything.to(torch.zeros(1, dtype=torch.bfloat16))
    types = {f.name: getattr(moved, f.name).dtype for f in dataclasses.fields(moved)}
    assert types == {
        "classes": torch.int64,
        "text": torch.bfloat16,
        "text_valid": torch.bool,
        "past": torch.bfloat16,
        "past_frames": torch.int64,
    }
    assert everything.to(torch.zeros(1, device="meta")).classes.is_meta
    assert Conditions().to(torch.zeros(1)) == Conditions()


# --- Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": 0}, "classes are given to a model without: its num_classes is 0"),
        ({"text_width": 0}, "text is given to a model without: its text_width is 0"),
        ({"frame_conditioning": False}, "past is given to a model without frame_conditioning"),
        ({"self_conditioning": False}, "estimate is given to a model without self_conditioning"),
    ],
)
def test_models_without_an_option_refuse_it(
    small: WaltConfig, latents: Tensor, everything: Conditions, fields: dict, message: str
) -> None:
    model = Walt(dataclasses.replace(small, **fields)).double()
    with pytest.raises(ValueError, match=message):
        model(latents, TIMESTEP, everything, latents)


@pytest.mark.usefixtures("_unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": torch.tensor([3, 0])}, r"classes \[3, 0\] must be 0 to 2, or -1"),
        ({"classes": torch.tensor([0, -2])}, r"classes \[0, -2\] must be 0 to 2, or -1"),
        ({"classes": torch.tensor([1])}, "classes is of 1 samples, the latents are of 2"),
        ({"text": torch.zeros(2, 4, 7)}, r"\(4, 7\) must be at least one token of width 8"),
        ({"text": torch.zeros(2, 0, 8)}, r"\(0, 8\) must be at least one token of width 8"),
        ({"text": torch.zeros(1, 4, 8)}, "text is of 1 samples, the latents are of 2"),
        ({"text": None}, "text_valid must have one value for each token of text"),
        ({"text_valid": VALID[:, :3]}, "text_valid must have one value for each token of text"),
        ({"text_valid": VALID[[0, 0, 0]]}, "text_valid is of 3 samples"),
        ({"text_valid": VALID & False}, "text_valid leaves a sample without a token"),
        ({"past": None}, "past and past_frames must be given together"),
        ({"past_frames": None}, "past and past_frames must be given together"),
        ({"past": torch.zeros(2, 4, 2, 4, 4)}, r"must be on the grid of the latents .* zeros"),
        ({"past_frames": torch.tensor([5, 0])}, r"past_frames \[5, 0\] must be 0 to 4"),
        ({"past_frames": torch.tensor([0, -1])}, r"past_frames \[0, -1\] must be 0 to 4"),
        ({"past_frames": torch.tensor([0])}, "past_frames is of 1 samples"),
    ],
)
def test_conditions_that_do_not_fit(
    model: Walt, latents: Tensor, everything: Conditions, changes: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model(latents, TIMESTEP, dataclasses.replace(everything, **changes))


def test_an_image_has_no_past(model: Walt, random: Random) -> None:
    image = random(2, 4, 1, 4, 4)
    with pytest.raises(ValueError, match=r"past_frames \[1, 1\] must be 0 to 0"):
        predict(model, image, Conditions(past=image, past_frames=torch.tensor([1, 1])))


def test_repeated_whole_and_sample_by_sample() -> None:
    conditions = Conditions(
        classes=torch.tensor([3, 5]), text_valid=torch.tensor([[True, True], [True, False]])
    )
    repeated = conditions.repeat(outer=2, inner=3)
    assert repeated.classes is not None
    assert repeated.classes.tolist() == [3, 3, 3, 5, 5, 5] * 2
    assert repeated.text_valid is not None
    assert repeated.text_valid[2:4].tolist() == [[True, True], [True, False]]
    assert repeated.text is repeated.past is None
