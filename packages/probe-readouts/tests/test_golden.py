"""Published weights give published outputs, and trees that do not fit are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor

from probe_readouts import (
    AttentiveReadout,
    BoxTrackReadout,
    DepthReadout,
    PointTrackReadout,
    PoseReadout,
    Readout,
    load_flax,
)

# float32 sums in another order than the reference's.
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
TRACKS = ["points", "boxes", "points_late", "boxes_late"]

Tree = dict[str, np.ndarray]


def golden(name: str) -> tuple[Tree, dict[str, Tensor]]:
    """Weights, and inputs and outputs, of one file; space is unflattened, any shape will do."""
    with np.load(Path(__file__).parent / "golden" / f"{name}.npz", allow_pickle=False) as data:
        arrays = {key: data[key] for key in data.files}
    tree = {key[6:]: array for key, array in arrays.items() if key.startswith("param:")}
    rest = {key: torch.tensor(array) for key, array in arrays.items() if key[:6] != "param:"}
    rest["features"] = rearrange(rest["features"], "... (h w) c -> ... h w c", h=3)
    return tree, rest


def attentive(tree: Tree, num_heads: int) -> AttentiveReadout:
    """A readout of the sizes of a tree, with its weights."""
    width, num_outputs = tree["Dense_1/kernel"].shape
    _, num_frames, _, feature_dim = tree["temporal_posenc/embeddings"].shape
    readout = AttentiveReadout(
        feature_dim, num_outputs, width=width, num_heads=num_heads, num_frames=num_frames
    )
    load_flax(readout, tree)
    return readout


def tracks(name: str, tree: Tree) -> PointTrackReadout | BoxTrackReadout:
    """As `attentive`."""
    feature_dim, num_heads, head_width = tree[
        "backbone/transformer/layer_0/cross_att/dense_key/kernel"
    ].shape
    width, hidden_width = tree["backbone/transformer/layer_0/MLP_in/kernel"].shape
    readout = (PointTrackReadout if name.startswith("points") else BoxTrackReadout)(
        feature_dim,
        width=width,
        num_blocks=2,
        num_heads=num_heads,
        qkv_width=num_heads * head_width,
        hidden_width=hidden_width,
    )
    load_flax(readout, tree)
    return readout


# --- Outputs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attentive_readout(dtype: torch.dtype) -> None:
    tree, data = golden("attentive")
    readout = attentive(tree, int(data["num_heads"])).to(dtype)
    outputs = readout(data["features"].to(dtype))
    torch.testing.assert_close(outputs, data["output"].to(dtype), **TOLERANCE)


def test_depth_readout() -> None:
    tree, data = golden("depth")
    num_heads, feature_dim = int(data["num_heads"]), data["features"].shape[-1]
    readout = DepthReadout(
        feature_dim,
        num_blocks=2,
        num_heads=num_heads,
        qkv_width=num_heads * tree["transformer/layer_0/cross_att/norm_key/scale"].size,
        hidden_width=tree["transformer/layer_0/MLP_in/bias"].size,
        num_octaves=int(data["num_bases"]),
    )
    load_flax(readout, tree)
    depth = readout(rearrange(data["features"], "b h w c -> b 1 h w c"), data["coords"])
    expected = rearrange(data["output"], "b H W 1 -> b 1 H W")
    torch.testing.assert_close(depth, expected, **TOLERANCE)


@pytest.mark.parametrize("name", TRACKS)
def test_track_readouts(name: str) -> None:
    """`track` takes the queries of the files, which are not all in [0, 1]."""
    tree, data = golden(name)
    readout = tracks(name, tree)
    result = readout.track(data["features"], data["queries"], data.get("query_frames"))
    torch.testing.assert_close(result.values, data["values"], **TOLERANCE)
    torch.testing.assert_close(result.logits, data["logits"], **TOLERANCE)
    assert torch.equal(result.visible[..., None].float(), data["visible"])
    if "states" in data:
        torch.testing.assert_close(result.states, data["states"], **TOLERANCE)


# --- Trees ---------------------------------------------------------------------------------------


def test_pose_readout_takes_the_tree_of_its_attentive_readout() -> None:
    torch.manual_seed(0)
    tree, _ = golden("attentive")
    tree["temporal_posenc/embeddings"] = tree["temporal_posenc/embeddings"][:, :1]
    tree["Dense_1/kernel"] = np.zeros((16, 12), np.float32)
    tree["Dense_1/bias"] = np.arange(12, dtype=np.float32)
    readout = PoseReadout(12, width=16, num_heads=4)
    load_flax(readout, tree)
    pose = readout(torch.randn(2, 17, 2, 2, 12))
    assert torch.equal(pose[1], torch.arange(12.0).unflatten(0, (3, 4)))
    for name, weight in attentive(tree, 4).state_dict().items():
        assert torch.equal(readout.attentive.state_dict()[name], weight)


def test_weights_are_copied_to_the_type_of_the_readout() -> None:
    tree, _ = golden("attentive")
    readout = attentive(tree, 4).bfloat16()
    tree["Dense_1/bias"] = np.full(7, 0.1, np.float32)
    load_flax(readout, tree)
    assert torch.equal(readout.output.bias, torch.full((7,), 0.1).bfloat16())
    tree["Dense_1/bias"][:] = 0
    assert readout.output.bias.all(), "the readout does not share the array"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Dense_1/bias": None}, "missing Dense_1/bias;"),
        ({"Dense_9/bias": np.zeros(3)}, "left over Dense_9/bias;"),
        ({"Dense_0/kernel": np.zeros((16, 8))}, r"Dense_0/kernel is \(16, 8\), expected \(16, 16"),
        # As many numbers in other heads are other keys.
        (
            {"key_embedding/kernel": np.zeros((24, 2, 8))},
            r"key_embedding/kernel is \(24, 2, 8\), expected \(24, 4, 4\)",
        ),
        ({"query": np.zeros(16)}, r"query is \(16,\), expected \(1, 4, 4\)"),
        ({"Dense_1/bias": np.full(7, np.nan)}, "Dense_1/bias is not finite"),
        (
            {"query": None, "Dense_1/bias": None, "other": np.zeros(1)},
            "missing Dense_1/bias; missing query; left over other; build",
        ),
    ],
    ids=["missing", "left over", "shape", "heads", "rank", "not finite", "several"],
)
def test_trees_that_do_not_fit(change: dict[str, np.ndarray | None], message: str) -> None:
    tree, _ = golden("attentive")
    readout = attentive(tree, 4)
    before = {name: value.clone() for name, value in readout.state_dict().items()}
    tree["LayerNorm_0/bias"] = tree["LayerNorm_0/bias"] + 1
    tree.update({key: array for key, array in change.items() if array is not None})
    for key in [key for key, array in change.items() if array is None]:
        del tree[key]
    with pytest.raises(ValueError, match=message):
        load_flax(readout, tree)
    assert all(torch.equal(before[name], value) for name, value in readout.state_dict().items())


def test_a_tree_of_another_head() -> None:
    points, _ = golden("points")
    boxes, _ = golden("boxes")
    with pytest.raises(ValueError, match=r"initializer/layers_1/Dense_0/kernel is \(128, 16\)"):
        load_flax(tracks("points", points), boxes)


def test_readouts_without_flax_weights() -> None:
    with pytest.raises(ValueError, match="no Flax weights are known for Readout"):
        load_flax(Readout(4, "paper", {}), {})
