"""Track readouts against the recurrence written down; restarts, padding, independence."""

import math
from collections.abc import Callable

import pytest
import torch
from einops import rearrange
from torch import Tensor

from probe_readouts.losses import box_track_loss, point_track_loss
from probe_readouts.time import resize_time
from probe_readouts.tracking import BoxTrackReadout, PointTrackReadout, TrackReadout, Tracks

# Double precision; a recurrence of some frames passes rounding on.
EXACT = {"atol": 1e-10, "rtol": 1e-9}
READOUTS = {"points": PointTrackReadout, "boxes": BoxTrackReadout}

both = pytest.mark.parametrize("kind", READOUTS)


def small(kind: str, **changes: object) -> TrackReadout:
    torch.manual_seed(0)
    sizes = {"width": 10, "num_blocks": 2, "num_heads": 2, "qkv_width": 8, "hidden_width": 12}
    return READOUTS[kind](6, **{**sizes, "num_octaves": 3, **changes}).double()


def draw(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def queries(kind: str, *shape: int, seed: int = 2) -> Tensor:
    """Points, or boxes whose second corner is the larger."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(*shape, 2, generator=generator, dtype=torch.float64)
    return points if kind == "points" else torch.cat([0.5 * points, 0.5 * points + 0.4], dim=-1)


def assert_tracks_close(tracks: Tracks, expected: Tracks, where: tuple = ()) -> None:
    """Compare all that tracks hold, at `where` on both sides."""
    for ours, theirs in zip(tracks, expected, strict=True):
        torch.testing.assert_close(ours[where], theirs[where], **EXACT)


@pytest.fixture
def transcription(dense_block: Callable, layer_norm: Callable, mlp: Callable) -> Callable:
    """Function that follows queries by the formulas: all that a frame needs is made in it."""

    def follow(
        readout: TrackReadout, features: Tensor, queries: Tensor, query_frames: Tensor | None
    ) -> Tracks:
        def linear(module: torch.nn.Linear, x: Tensor) -> Tensor:
            return x @ module.weight.T + module.bias

        angles = [
            math.pi * 2**i * queries[..., j] for i in range(3) for j in range(queries.shape[-1])
        ]
        fourier = torch.stack([*map(torch.sin, angles), *map(torch.cos, angles)], dim=-1)
        initial = state = mlp(readout.initializer, fourier)
        tracks, step = [], readout.step
        for frame in range(features.shape[1]):
            tokens = rearrange(features[:, frame], "b h w c -> b (h w) c")
            if query_frames is not None:
                starts = (query_frames == frame)[..., None]
                state = torch.where(starts, initial, state)
            x = linear(step.input, state)
            for block in step.blocks:
                x = dense_block(block, x, tokens)
            corrected = state + linear(step.output, layer_norm(x, step.norm.weight))
            advanced = corrected + mlp(step.predictor, corrected)
            state = layer_norm(advanced, step.state_norm.weight, 1e-4)
            values = 1 / (1 + (-mlp(readout.value_head, corrected)).exp())
            tracks.append((values, mlp(readout.logit_head, corrected), state))
        return Tracks(*(torch.stack(x, dim=1) for x in zip(*tracks, strict=True)))

    return follow


@both
@pytest.mark.parametrize("late", [False, True])
def test_values_and_gradients_are_those_of_the_formulas(
    kind: str, late: bool, transcription: Callable, randomize: Callable
) -> None:
    readout = small(kind)
    randomize(readout)
    features = draw(2, 4, 2, 3, 6).requires_grad_()
    given = queries(kind, 2, 5).requires_grad_()
    frames = torch.tensor([[0, 1, 2, 3, 3], [2, 0, 0, 1, 3]]) if late else None
    tracks = readout(features, given, frames)
    expected = transcription(readout, features, given, frames)
    assert_tracks_close(tracks, expected)
    inputs = [features, given, *readout.parameters()]

    def gradients(tracks: Tracks) -> tuple[Tensor, ...]:
        total = sum((x * draw(*x.shape, seed=7)).sum() for x in tracks)
        return torch.autograd.grad(total, inputs)

    for ours, theirs in zip(gradients(tracks), gradients(expected), strict=True):
        assert theirs.any()
        torch.testing.assert_close(ours, theirs, **EXACT)


@both
def test_features_of_5_latents_are_resized_to_17_frames(kind: str, transcription: Callable) -> None:
    readout, features, given = small(kind), draw(2, 5, 1, 2, 6), queries(kind, 2, 3)
    frames = torch.tensor([[0, 5, 16], [1, 0, 9]])
    expected = transcription(readout, resize_time(features, 17), given, frames)
    assert_tracks_close(readout(features, given, frames, num_frames=17), expected)


@both
def test_tracks_begin_where_their_query_is_given(kind: str) -> None:
    readout, features, given = small(kind), draw(2, 6, 2, 2, 6), queries(kind, 2, 3)
    frames = torch.tensor([[4, 0, 2], [1, 4, 5]])
    tracks = readout(features, given, frames)
    for sample in range(2):
        for query in range(3):
            first = int(frames[sample, query])
            begun = readout(features[sample, first:][None], given[sample, query][None, None])
            for ours, alone in zip(tracks, begun, strict=True):
                torch.testing.assert_close(ours[sample, first:, query], alone[0, :, 0], **EXACT)


@both
def test_no_query_frames_is_frame_0(kind: str) -> None:
    readout, features, given = small(kind), draw(2, 3, 2, 2, 6), queries(kind, 2, 3)
    first = torch.zeros(2, 3, dtype=torch.int32)
    assert_tracks_close(readout(features, given, first), readout(features, given))


@both
def test_later_frames_change_nothing_before_them(kind: str) -> None:
    readout, features, given = small(kind), draw(2, 5, 2, 2, 6), queries(kind, 2, 3)
    frames = torch.tensor([[0, 1, 3], [4, 0, 2]])
    changed = features.clone()
    changed[:, 3] = draw(2, 2, 2, 6, seed=3)
    tracks, others = readout(features, given, frames), readout(changed, given, frames)
    assert_tracks_close(others, tracks, (slice(None), slice(0, 3)))
    difference = (others.logits - tracks.logits)[0, 3:].abs().amax(dim=-1)
    assert (difference > 1e-6).all(), "a frame changes itself and, through the state, what follows"


@both
def test_queries_do_not_depend_on_each_other(kind: str) -> None:
    readout, features, given = small(kind), draw(2, 4, 2, 2, 6), queries(kind, 2, 5)
    frames = torch.tensor([[0, 1, 2, 3, 0], [2, 0, 0, 1, 3]])
    tracks = readout(features, given, frames)
    order = torch.tensor([3, 0, 4, 2, 1])
    permuted = readout(features, given[:, order], frames[:, order])
    assert_tracks_close(permuted, Tracks(*(x[:, :, order] for x in tracks)))
    fewer = readout(features, given[:, :2], frames[:, :2])
    assert_tracks_close(fewer, Tracks(*(x[:, :, :2] for x in tracks)))


@both
@pytest.mark.parametrize("padding", [float("nan"), float("inf"), -3.0, 0.0])
def test_padding_changes_no_track_and_no_gradient(kind: str, padding: float) -> None:
    readout, features, given = small(kind), draw(2, 4, 2, 2, 6), queries(kind, 2, 5)
    frames = torch.tensor([[0, 1, 2, 3, 0], [2, 0, 0, 1, 3]])
    valid = torch.tensor([[True, False, True, True, False], [True] * 4 + [False]])
    padded, wrong = given.clone(), frames.clone()
    padded[~valid] = padding
    wrong[~valid] = torch.tensor([-7, 99, 4])

    def counted(tracks: Tracks) -> tuple[Tensor, list[Tensor]]:
        entries = torch.cat([rearrange(x, "b t q v -> b q t v")[valid].flatten() for x in tracks])
        total = (entries * draw(*entries.shape, seed=7)).sum()
        return entries, list(torch.autograd.grad(total, list(readout.parameters())))

    expected = counted(readout(features, given, frames))
    ours = counted(readout(features, padded, wrong, valid))
    torch.testing.assert_close(ours, expected, **EXACT)
    without = counted(readout(features, given, frames, torch.ones_like(valid)))
    torch.testing.assert_close(without, expected, **EXACT)


def track_loss(kind: str, tracks: Tracks, target: Tensor, valid: Tensor) -> Tensor:
    """The loss that trains the readout; all valid points are visible."""
    if kind == "boxes":
        return box_track_loss(tracks.values, target, valid)
    return point_track_loss(tracks.values, tracks.logits, target, valid, valid).total


@both
def test_masked_frames_and_queries_change_no_gradient_of_the_loss(kind: str) -> None:
    readout, features, given = small(kind), draw(2, 4, 2, 2, 6), queries(kind, 2, 3)
    frames = torch.tensor([[0, 2, 1], [3, 0, 0]])
    valid = torch.tensor([[True, True, False], [True, False, False]])
    begun = torch.arange(4)[None, :, None] >= rearrange(frames, "b q -> b 1 q")
    counts = begun & rearrange(valid, "b q -> b 1 q")
    target = queries(kind, 2, 4, 3, seed=4)

    def gradients(given: Tensor, target: Tensor) -> list[Tensor]:
        loss = track_loss(kind, readout(features, given, frames, valid), target, counts)
        reached = [
            p for p in readout.parameters() if not (kind == "boxes" and is_logit(readout, p))
        ]
        return list(torch.autograd.grad(loss, reached))

    expected = gradients(given, target)
    padded = torch.where(valid[..., None], given, float("nan"))
    torch.testing.assert_close(
        gradients(padded, torch.where(counts[..., None], target, float("nan"))), expected, **EXACT
    )


def is_logit(readout: TrackReadout, parameter: Tensor) -> bool:
    return any(parameter is p for p in readout.logit_head.parameters())


@both
def test_the_loss_reaches_every_parameter_but_the_logits_of_boxes(kind: str) -> None:
    readout, features, given = small(kind), draw(2, 3, 2, 2, 6), queries(kind, 2, 4)
    tracks = readout(features, given)
    valid = torch.ones(2, 3, 4, dtype=torch.bool)
    track_loss(kind, tracks, queries(kind, 2, 3, 4, seed=4), valid).backward()
    for name, parameter in readout.named_parameters():
        if kind == "boxes" and name.startswith("logit_head."):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


@both
def test_one_frame_trains_all_but_what_leads_to_the_next(kind: str) -> None:
    readout = small(kind)
    tracks = readout(draw(2, 1, 2, 2, 6), queries(kind, 2, 4))
    assert [x.shape[:3] for x in tracks] == [(2, 1, 4)] * 3
    (tracks.values.sum() + tracks.logits.sum()).backward()
    unreached = {name for name, p in readout.named_parameters() if p.grad is None}
    prefixes = ("step.predictor.", "step.state_norm.")
    assert unreached == {n for n, _ in readout.named_parameters() if n.startswith(prefixes)}


@both
def test_no_queries_give_no_tracks(kind: str) -> None:
    readout = small(kind)
    tracks = readout(draw(2, 3, 2, 2, 6), queries(kind, 2, 0))
    assert [x.shape for x in tracks] == [(2, 3, 0, readout.num_values), (2, 3, 0, 2), (2, 3, 0, 10)]


def test_visible_where_both_probabilities_multiply_to_more_than_a_half() -> None:
    # Products of the probabilities: 0.501, 0.499, then visible but not certain, then both.
    logits = torch.tensor([[[[1.0, 0.778], [1.0, 0.765], [9.0, -9.0], [9.0, 9.0]]]])
    tracks = Tracks(torch.zeros(1, 1, 4, 2), logits, torch.zeros(1, 1, 4, 3))
    assert tracks.visible.tolist() == [[[True, False, False, True]]]


@both
def test_values_are_in_the_unit_square(kind: str) -> None:
    readout = small(kind)
    with torch.no_grad():
        readout.value_head.project.weight *= 100.0
    values = readout(draw(2, 3, 2, 2, 6), queries(kind, 2, 4)).values
    assert values.min() >= 0
    assert values.max() <= 1
    assert values.std() > 0.3


@pytest.mark.slow
# torch looks for the gradients of states, which are no leaves, as it traces.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.usefixtures("unchecked_shapes")
def test_the_step_compiles_once_for_all_frames() -> None:
    readout, features = small("points", num_blocks=1), draw(2, 5, 2, 2, 6)
    given, frames = queries("points", 2, 3), torch.tensor([[0, 1, 2], [4, 0, 2]])

    def follow() -> tuple[Tracks, list[Tensor]]:
        tracks = readout(features, given, frames)
        total = sum((x * draw(*x.shape, seed=7)).sum() for x in tracks)
        return tracks, list(torch.autograd.grad(total, list(readout.parameters())))

    expected, names = follow(), list(readout.state_dict())
    readout.step.compile(backend="aot_eager", fullgraph=True)
    readout(features[:, :1], given)
    with torch.compiler.set_stance("fail_on_recompile"):
        tracks, gradients = follow()
    assert_tracks_close(tracks, expected[0])
    torch.testing.assert_close(gradients, expected[1], **EXACT)
    assert list(readout.state_dict()) == names


# --- What it refuses -----------------------------------------------------------------------------


@both
@pytest.mark.parametrize("value", [1.01, -0.01, float("nan"), float("inf")])
def test_queries_outside_the_image(kind: str, value: float) -> None:
    given = queries(kind, 2, 3)
    given[1, 2, -1] = value
    with pytest.raises(ValueError, match=rf"{kind}\[1, 2\] = \(.*\) is not in \[0, 1\]"):
        small(kind)(draw(2, 3, 2, 2, 6), given)
    tracks = small(kind)(draw(2, 3, 2, 2, 6), given, valid=torch.tensor([[True] * 3, [False] * 3]))
    assert all(x.isfinite().all() for x in tracks)


@pytest.mark.parametrize(
    ("box", "problem"),
    [
        ([0.5, 0.1, 0.4, 0.9], "has negative area"),
        ([0.1, 0.9, 0.4, 0.5], "has negative area"),
        ([0.3, 0.1, 0.3, 0.9], "has no area"),
    ],
)
def test_boxes_without_area(box: list[float], problem: str) -> None:
    given = queries("boxes", 2, 3)
    given[0, 1] = torch.tensor(box, dtype=torch.float64)
    with pytest.raises(ValueError, match=rf"boxes\[0, 1\] = \(.*\) {problem}"):
        small("boxes")(draw(2, 3, 2, 2, 6), given)


@both
@pytest.mark.parametrize("wrong", [-1, 3])
def test_queries_outside_the_clip(kind: str, wrong: int) -> None:
    readout, features, given = small(kind), draw(2, 3, 2, 2, 6), queries(kind, 2, 3)
    frames = torch.zeros(2, 3, dtype=torch.long)
    frames[1, 2] = wrong
    message = rf"query 2 of sample 1 is given in frame {wrong}, but the clip has frames 0 .. 2; "
    with pytest.raises(ValueError, match=message):
        readout(features, given, frames)


def test_frames_of_queries_are_those_of_the_tracks() -> None:
    readout, features, given = small("points"), draw(1, 3, 2, 2, 6), queries("points", 1, 1)
    assert readout(features, given, torch.tensor([[8]]), num_frames=9).values.shape[1] == 9
    with pytest.raises(ValueError, match=r"given in frame 9, but the clip has frames 0 .. 8"):
        readout(features, given, torch.tensor([[9]]), num_frames=9)


@pytest.mark.usefixtures("unchecked_shapes")
@both
def test_shapes_that_do_not_fit(kind: str) -> None:
    readout, features, given = small(kind), draw(2, 3, 2, 2, 6), queries(kind, 2, 3)
    size = readout.num_values
    message = rf"queries of shape \(.*\) must be \(b, q, {size}\) with b = 2, the batch"
    for wrong in (
        given[:1],
        given[0],
        given[..., :-1],
        queries("points" if size == 4 else "boxes", 2, 3),
    ):
        with pytest.raises(ValueError, match=message):
            readout(features, wrong)
    frames = torch.zeros(2, 3, dtype=torch.long)
    for name in ("query_frames", "valid"):
        for wrong in (frames[:1], frames[:, :2], frames[0]):
            wrong = wrong.bool() if name == "valid" else wrong
            with pytest.raises(ValueError, match=rf"{name} of shape .* = \(2, 3\), one for each"):
                readout(features, given, **{name: wrong})


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="num_heads 3 must divide qkv_width 8"):
        small("points", num_heads=3)
