"""What all heads share: grids, gradients, precision, what rebuilds them, and what they refuse."""

import copy
import dataclasses
import inspect
import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from probe_readouts.attentive import AttentiveReadout
from probe_readouts.depth import DepthReadout
from probe_readouts.losses import (
    box_track_loss,
    classification_loss,
    depth_loss,
    point_track_loss,
    pose_loss,
)
from probe_readouts.pose import PoseReadout
from probe_readouts.readout import Readout
from probe_readouts.time import resize_time
from probe_readouts.tracking import BoxTrackReadout, PointTrackReadout, Tracks

NUM_FRAMES = 17
POINTS = torch.tensor([[0.1, 0.2], [0.9, 0.4], [0.5, 0.5]])
BOXES = torch.tensor([[0.1, 0.2, 0.6, 0.3], [0.0, 0.4, 1.0, 0.9]])
BLOCKS = {"num_heads": 2, "qkv_width": 8, "hidden_width": 12, "num_octaves": 3}


@dataclasses.dataclass(frozen=True)
class Head:
    """A head at a small size, what it takes beside features, and the loss that trains it."""

    readout: type[Readout]
    sizes: dict[str, object]
    loss: Callable[..., Tensor]
    inputs: Callable[[int], tuple[Tensor, ...]] = lambda num_samples: ()
    unreached: tuple[str, ...] = ()
    """Beginnings of the names of parameters that the loss gives no gradient."""

    def build(self, feature_dim: int = 6, **changes: object) -> Readout:
        torch.manual_seed(0)
        return self.readout(feature_dim, **{**self.sizes, **changes})

    def __call__(self, readout: Readout, features: Tensor, num_frames: int | None = None) -> Tensor:
        """All outputs of a sample side by side."""
        inputs = [x.to(features) for x in self.inputs(len(features))]
        outputs = readout(features, *inputs, num_frames=num_frames)
        outputs = outputs if isinstance(outputs, Tracks) else [outputs]
        return torch.cat([x.flatten(1) for x in outputs], dim=1)


def repeated(queries: Tensor) -> Callable[[int], tuple[Tensor, ...]]:
    return lambda num_samples: (queries.expand(num_samples, -1, -1),)


def point_loss(tracks: Tracks) -> Tensor:
    seen = torch.ones(tracks.values.shape[:-1], dtype=torch.bool)
    target = POINTS.expand_as(tracks.values)
    return point_track_loss(tracks.values, tracks.logits, target, seen).total


HEADS = {
    "attentive": Head(
        AttentiveReadout,
        {"num_outputs": 4, "width": 16, "num_heads": 4, "num_frames": NUM_FRAMES},
        lambda logits: classification_loss(logits, torch.arange(len(logits))),
        # The key bias moves all scores of a head alike, which the softmax does not see.
        unreached=("pooling.key.bias",),
    ),
    "pose": Head(
        PoseReadout,
        {"width": 16, "num_heads": 4},
        lambda pose: pose_loss(pose, torch.ones_like(pose)),
        unreached=("attentive.pooling.key.bias",),
    ),
    "depth": Head(
        DepthReadout,
        BLOCKS,
        lambda depth: depth_loss(depth, torch.full_like(depth, 2.0)),
        inputs=lambda num_samples: (2 * POINTS - 1,),
    ),
    "points": Head(
        PointTrackReadout,
        {"width": 10, "num_blocks": 2, **BLOCKS},
        point_loss,
        inputs=repeated(POINTS),
    ),
    "boxes": Head(
        BoxTrackReadout,
        {"width": 10, "num_blocks": 2, **BLOCKS},
        lambda tracks: box_track_loss(tracks.values, BOXES.expand_as(tracks.values)),
        inputs=repeated(BOXES),
        unreached=("logit_head.",),
    ),
}

every_head = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- Features of any form ------------------------------------------------------------------------


@every_head
@pytest.mark.parametrize(
    ("feature_dim", "grid"), [(1, (1, 1, 1)), (5, (1, 3, 2)), (8, (3, 1, 4)), (7, (17, 2, 3))]
)
def test_any_width_and_grid(head: Head, feature_dim: int, grid: tuple[int, int, int]) -> None:
    outputs = head(head.build(feature_dim), draw(2, *grid, feature_dim))
    assert outputs.shape[0] == 2
    assert outputs.isfinite().all()


@every_head
@pytest.mark.parametrize(
    ("time_method", "num_in", "num_out"),
    [
        *[("paper", 5, 17), ("causal", 5, 17), ("nearest", 5, 17)],
        *[("paper", 6, 4), ("nearest", 6, 4), ("paper", 1, 3), ("causal", 3, 3)],
    ],
)
def test_num_frames_resizes_the_features(
    head: Head, time_method: str, num_in: int, num_out: int
) -> None:
    readout = head.build(time_method=time_method).double()
    features = draw(2, num_in, 2, 2, 6).double()
    expected = head(readout, resize_time(features, num_out, time_method))
    # 1e-10: double precision, after a recurrence of up to 17 frames.
    outputs = head(readout, features, num_out)
    torch.testing.assert_close(outputs, expected, atol=1e-10, rtol=1e-9)


@every_head
def test_samples_do_not_depend_on_their_batch(head: Head) -> None:
    readout, features = head.build().double(), draw(3, 4, 2, 2, 6).double()
    outputs = head(readout, features)
    alone = torch.cat([head(readout, sample[None]) for sample in features])
    torch.testing.assert_close(alone, outputs, atol=1e-10, rtol=1e-9)
    assert (outputs[0] - outputs[1]).abs().amax() > 1e-3


@every_head
def test_shapes_are_known_on_the_meta_device(head: Head) -> None:
    with torch.device("meta"):
        readout = head.build()
    expected = head(head.build(), draw(2, 4, 2, 2, 6)).shape
    features = torch.empty(2, 4, 2, 2, 6, device="meta")
    inputs = [x.to("meta") for x in head.inputs(2)]
    outputs = readout(features, *inputs)
    outputs = outputs if isinstance(outputs, Tracks) else [outputs]
    assert sum(x.numel() for x in outputs) == expected.numel()


# --- Gradients -----------------------------------------------------------------------------------


@every_head
def test_the_loss_reaches_every_parameter(head: Head) -> None:
    readout, features = head.build(), draw(3, NUM_FRAMES, 2, 2, 6)
    head.loss(readout(features, *head.inputs(3))).backward()
    for name, parameter in readout.named_parameters():
        gradient = parameter.grad
        if name.startswith(head.unreached):
            # 1e-6: rounding of sums that cancel.
            assert gradient is None or gradient.abs().amax() < 1e-6, name
        else:
            assert gradient is not None, name
            assert gradient.isfinite().all(), name
            assert gradient.abs().amax() > 1e-6, name


@every_head
def test_gradients_of_a_black_clip_are_finite(head: Head) -> None:
    """Features that are all zero have keys without direction, and no variance."""
    readout, features = head.build(), torch.zeros(2, 3, 2, 2, 6, requires_grad=True)
    head.loss(readout(features, *head.inputs(2))).backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in readout.parameters())


@pytest.mark.parametrize("num_frames", [1, 5, NUM_FRAMES])
def test_only_rows_of_the_time_table_that_are_used_get_a_gradient(num_frames: int) -> None:
    head = HEADS["attentive"]
    readout = head.build()
    head.loss(readout(draw(3, num_frames, 2, 2, 6))).backward()
    used = readout.time_embedding.grad.abs().amax(dim=1) > 0
    assert used.tolist() == [True] * num_frames + [False] * (NUM_FRAMES - num_frames)


# --- Precision -----------------------------------------------------------------------------------


@every_head
def test_autocast_is_near_float32(head: Head) -> None:
    readout, features = head.build(), draw(2, 3, 2, 2, 6).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inputs = head.inputs(2)
        outputs = readout(features, *inputs)
        head.loss(outputs).backward()
    expected = readout(features.float(), *inputs)
    pairs = zip(
        outputs if isinstance(outputs, Tracks) else [outputs],
        expected if isinstance(expected, Tracks) else [expected],
        strict=True,
    )
    for ours, theirs in pairs:
        # 0.1: bfloat16 keeps 8 bits; norms over few channels and 3 frames amplify the rounding.
        assert (ours.float() - theirs).norm() < 0.1 * theirs.norm()
    assert all(p.grad is None or p.grad.isfinite().all() for p in readout.parameters())


@every_head
def test_float64_is_near_float32(head: Head) -> None:
    readout, features = head.build(), draw(2, 3, 2, 2, 6)
    outputs = head(readout, features)
    wide = head(readout.double(), features.double())
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide.float(), outputs, atol=1e-4, rtol=1e-4)


@every_head
def test_bfloat16_weights_take_bfloat16_features(head: Head) -> None:
    outputs = head(head.build().bfloat16(), draw(2, 3, 2, 2, 6).bfloat16())
    assert outputs.dtype == torch.bfloat16
    assert outputs.isfinite().all()


# --- What rebuilds a head ------------------------------------------------------------------------


@every_head
def test_config_rebuilds_the_form_from_plain_values(head: Head) -> None:
    readout = head.build(feature_dim=5, time_method="causal")
    config = json.loads(json.dumps(readout.config))
    assert config == readout.config
    assert set(config) == set(inspect.signature(head.readout).parameters)
    again = type(readout)(**config)
    assert again.config == config
    again.load_state_dict(readout.state_dict())
    features = draw(2, 3, 2, 2, 5)
    assert torch.equal(head(again, features, 5), head(readout, features, 5))


@every_head
def test_copies_and_saved_states_give_the_same_numbers(head: Head, randomize: Callable) -> None:
    readout, features = head.build(), draw(2, 3, 2, 2, 6)
    randomize(readout)
    expected = head(readout, features)
    twin = copy.deepcopy(readout)
    other = head.build()
    assert not torch.equal(head(other, features), expected)
    other.load_state_dict(readout.state_dict())
    with torch.no_grad():
        for parameter in readout.parameters():
            parameter.zero_()
    assert torch.equal(head(twin, features), expected)
    assert torch.equal(head(other, features), expected)


@every_head
def test_reset_draws_all_weights_anew(head: Head) -> None:
    readout = head.build()
    torch.nn.utils.vector_to_parameters(
        torch.full((sum(p.numel() for p in readout.parameters()),), 7.0), readout.parameters()
    )
    readout.reset_parameters()
    for name, parameter in readout.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name or name.endswith("scale"):
            assert (parameter == 1).all(), name
        else:
            assert parameter.std() > 0, name
            assert parameter.abs().amax() < 7, name


@every_head
def test_same_seed_same_weights(head: Head) -> None:
    ours, theirs = head.build().state_dict(), head.build().state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("name", ["attentive", "depth", "points"])
def test_compiles_as_one_graph(name: str) -> None:
    head, features = HEADS[name], draw(2, 2, 2, 2, 6)
    readout, inputs = head.build(**{k: 1 for k in head.sizes if k == "num_blocks"}), head.inputs(2)
    compiled = torch.compile(readout, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(features, *inputs), readout(features, *inputs))


# --- What heads refuse ---------------------------------------------------------------------------


@every_head
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("grad", [True, False])
def test_features_that_are_not_finite(head: Head, value: float, grad: bool) -> None:
    features = draw(3, 5, 2, 2, 6)
    features[1, 4, 1, 0, 5] = value
    message = r"features hold 1 values that are NaN or infinite, in samples \[1\] of the batch; .*"
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match=message + "check the"):
        head(head.build(), features)
    with pytest.raises(ValueError, match="that are NaN or infinite, in samples"):
        head(head.build(), features, 17)


@every_head
def test_weights_that_are_not_finite_are_not_blamed_on_the_features(head: Head) -> None:
    readout = head.build()
    with torch.no_grad():
        for parameter in readout.parameters():
            parameter.fill_(float("nan"))
    assert head(readout, draw(1, 2, 2, 2, 6)).isnan().any()


@every_head
def test_features_of_another_width(head: Head) -> None:
    message = (
        "features have 7 channels but the readout was built for feature_dim 6; build it with "
        "feature_dim=7, or pass channels last"
    )
    with pytest.raises(ValueError, match=message):
        head(head.build(), draw(1, 2, 2, 2, 7))


@every_head
@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("shape", [(2, 2, 3, 6), (2, 6), (1, 1, 2, 2, 3, 6)])
def test_features_of_another_rank(head: Head, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"of shape \(.*\) must have five axes .*one frame, t = 1"):
        head(head.build(), draw(*shape))


@every_head
@pytest.mark.parametrize("grid", [(0, 2, 2), (2, 0, 2), (2, 2, 0)])
def test_empty_grids(head: Head, grid: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"\(1, .*, 6\) have an empty grid; t, h and w must be"):
        head(head.build(), draw(1, *grid, 6))


@every_head
@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64])
def test_features_of_another_dtype(head: Head, dtype: torch.dtype) -> None:
    readout, features, inputs = head.build(), torch.ones(2, 3, 2, 2, 6, dtype=dtype), head.inputs(2)
    message = rf"features are {dtype} but the readout's weights are torch.float32; convert one"
    with pytest.raises(ValueError, match=message):
        readout(features, *inputs)
    if dtype != torch.bfloat16:
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match=message):
            readout(features, *inputs)


@every_head
def test_frames_that_the_time_method_cannot_make(head: Head) -> None:
    features = draw(2, 5, 2, 2, 6)
    with pytest.raises(ValueError, match="5 causal latents cannot hold 16 frames"):
        head(head.build(time_method="causal"), features, 16)
    with pytest.raises(ValueError, match="must be at least 1"):
        head(head.build(), features, 0)


def test_more_frames_than_the_time_table() -> None:
    head, message = HEADS["attentive"], "features have 18 frames but the time table has 17; build"
    with pytest.raises(ValueError, match=message):
        head(head.build(), draw(1, 18, 2, 2, 6))
    with pytest.raises(ValueError, match=message):
        head(head.build(), draw(1, 5, 2, 2, 6), 18)
    assert head(head.build(), draw(1, 18, 2, 2, 6), 17).shape == (1, 4)


@every_head
def test_unknown_time_methods(head: Head) -> None:
    message = r"unknown time_method 'cubic'; choose one of \('paper', 'causal', 'nearest'\)"
    with pytest.raises(ValueError, match=message):
        head.build(time_method="cubic")


@every_head
@pytest.mark.parametrize("size", [0, -1])
def test_sizes_must_be_positive(head: Head, size: int) -> None:
    config = head.build().config
    sizes = [name for name, value in config.items() if type(value) is int and name != "num_heads"]
    assert {"feature_dim", *(name for name in head.sizes if name != "num_heads")} <= set(sizes)
    for name in sizes:
        with pytest.raises(ValueError, match=f"{name} {size} must be at least 1"):
            head.readout(**{**config, name: size})
