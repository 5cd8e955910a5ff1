"""Readout files: what comes back, for which features, and which files are refused."""

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from probe_readouts import (
    AttentiveReadout,
    BackboneIdentity,
    Readout,
    create_readout,
    load_readout,
    save_readout,
    saving,
    weights_hash,
)

SMALL: dict[str, dict[str, Any]] = {
    "ssv2": {"num_outputs": 3, "width": 16, "num_heads": 2, "num_frames": 5},
    "re10k_pose": {"width": 16, "num_heads": 4},
    "scannet_depth": {"qkv_width": 8, "hidden_width": 8, "num_octaves": 2, "checkpoint": True},
    "point_tracks": {"width": 8, "num_blocks": 1, "qkv_width": 8, "hidden_width": 8},
    "waymo_boxes": {"width": 8, "num_blocks": 2, "qkv_width": 16, "hidden_width": 8},
}
BACKBONE = BackboneIdentity(
    name="v-walt", weights="0123456789abcdef", block=4, timestep=200, time_method="paper"
)
Change = Callable[[dict[str, Any], dict[str, Tensor]], None]


@pytest.fixture(autouse=True)
def _no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may unpickle, whatever the file."""

    def fail(*args: object, **options: object) -> None:
        pytest.fail("a pickle was read")

    monkeypatch.setattr(torch, "load", fail)
    monkeypatch.setattr("pickle.load", fail)
    monkeypatch.setattr("pickle.loads", fail)


def build(name: str = "ssv2", **overrides: Any) -> Readout:
    torch.manual_seed(0)
    return create_readout(name, 8, **SMALL[name] | overrides)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A saved attentive readout."""
    save_readout(build(), tmp_path / "readout.safetensors", BACKBONE)
    return tmp_path / "readout.safetensors"


def rewrite(path: Path, change: Change) -> None:
    """Change the header and the tensors of a good file, and nothing else."""
    header, state = read(path)
    change(header, state)
    save_file(state, path, {"format": "pt", "readout": json.dumps(header)})


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        return json.loads(file.metadata()["readout"]), {key: file.get_tensor(key) for key in names}


def assert_same(one: Readout, two: Readout) -> None:
    assert type(one) is type(two)
    assert one.config == two.config
    ours, theirs = one.state_dict(), two.state_dict()
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        assert torch.equal(value, theirs[name]), name


# --- What comes back -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SMALL)
def test_round_trip(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    readout = build(name, time_method="causal").to(dtype)
    backbone = dataclasses.replace(BACKBONE, time_method="causal")
    save_readout(readout, tmp_path / "a" / "b.safetensors", backbone)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    loaded = load_readout(str(tmp_path / "a" / "b.safetensors"), backbone)
    assert torch.equal(torch.get_rng_state(), before), "loading draws no weights"
    assert_same(readout, loaded)
    tensors = [*loaded.parameters(), *loaded.buffers()]
    assert not any(tensor.is_meta for tensor in tensors)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert not any(module.training for module in loaded.modules())


def test_a_loaded_readout_gives_the_same_outputs(path: Path) -> None:
    features = torch.randn(2, 5, 2, 2, 8, generator=torch.Generator().manual_seed(1))
    readout, loaded = build(), load_readout(path, BACKBONE)
    # The default tolerance: the two copies of the weights lie at other addresses.
    torch.testing.assert_close(loaded(features), readout(features))


def test_the_file_says_what_it_is(path: Path) -> None:
    save_readout(build(), path, BACKBONE, {"dataset": "ssv2", "top1": 0.25})
    header, state = read(path)
    assert header == {
        "format": "probe-readouts/1",
        "class": "AttentiveReadout",
        "config": {"feature_dim": 8, "time_method": "paper", **SMALL["ssv2"]},
        "backbone": dataclasses.asdict(BACKBONE),
        "metadata": {"dataset": "ssv2", "top1": 0.25},
    }
    assert set(state) == set(build().state_dict())


def test_equal_readouts_are_equal_files(path: Path, tmp_path: Path) -> None:
    """So that the hash of a file says which readout it is."""
    for number in range(8):
        save_readout(build(), tmp_path / str(number), BACKBONE)
        assert (tmp_path / str(number)).read_bytes() == path.read_bytes()


def test_weights_that_are_views_are_saved(path: Path) -> None:
    readout = build()
    transposed = torch.randn(16, 3).T
    readout.output.weight = nn.Parameter(transposed)
    save_readout(readout, path, BACKBONE)
    assert_same(readout, load_readout(path, BACKBONE))


def test_a_file_is_there_whole_or_not_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_half(state: object, partial: Path, metadata: object) -> None:
        partial.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(saving, "save_file", write_half)
    for target in (path, path.with_name("new.safetensors")):
        with pytest.raises(OSError, match="disk full"):
            save_readout(build(num_outputs=9), target, BACKBONE)
    assert list(path.parent.iterdir()) == [path]
    assert_same(build(), load_readout(path, BACKBONE))


# --- For which features --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "i-walt"}, "name is 'v-walt' in the file and 'i-walt' here;"),
        ({"weights": "f" * 16}, "weights is '0123456789abcdef' in the file and 'ffffffffffffffff'"),
        ({"weights": ""}, "weights is '0123456789abcdef' in the file and unknown here"),
        ({"block": 5}, "block is 4 in the file and 5 here"),
        ({"timestep": 0}, "timestep is 200 in the file and 0 here"),
        ({"time_method": "causal"}, "time_method is 'paper' in the file and 'causal' here"),
        ({"name": "x", "block": 0}, "name is 'v-walt' in .* here; block is 4 in the file and 0"),
    ],
    ids=str,
)
def test_other_features(path: Path, changes: dict[str, Any], message: str) -> None:
    other = dataclasses.replace(BACKBONE, **changes)
    with pytest.raises(ValueError, match=f"trained on other features: .*{message}") as caught:
        load_readout(path, other)
    assert str(path) in str(caught.value)
    assert str(caught.value).count(" in the file and ") == len(changes), "what agrees is not named"
    assert "allow_other_backbone=True" in str(caught.value)
    assert_same(build(), load_readout(path, other, allow_other_backbone=True))


def test_unknown_weights_are_the_same_as_none(path: Path) -> None:
    unknown = dataclasses.replace(BACKBONE, weights="")
    save_readout(build(), path, unknown)
    for given in (unknown, BACKBONE):
        with pytest.raises(ValueError, match="weights is unknown in the file and "):
            load_readout(path, given)
    load_readout(path, unknown, allow_other_backbone=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "name is empty"),
        ({"block": -1}, "block -1 must be a whole number that is not negative"),
        ({"timestep": -1}, "timestep -1 must be"),
        ({"time_method": "cubic"}, "unknown time_method 'cubic'; choose one of .*'paper'"),
    ],
)
def test_identities_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BACKBONE, **changes)


def test_the_hash_is_of_names_types_shapes_and_values() -> None:
    state = {"b": torch.zeros(2, 3), "a": torch.ones(1, dtype=torch.bfloat16)}
    others = [
        {**state, "b": torch.zeros(3, 2)},
        {**state, "b": torch.zeros(2, 3, dtype=torch.int32)},
        {**state, "b": torch.eye(2, 3)},
        {"c": state["b"], "a": state["a"]},
        {"b": state["b"]},
    ]
    hashes = [weights_hash(model) for model in (state, *others)]
    assert len(set(hashes)) == len(hashes)
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in hashes)
    assert weights_hash(dict(reversed(state.items()))) == hashes[0], "order does not matter"
    module = nn.Linear(2, 2)
    assert weights_hash(module) == weights_hash(module.state_dict())
    assert weights_hash(module, state) != weights_hash(state, module)


# --- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, value: float) -> None:
    readout = build()
    with torch.no_grad():
        readout.output.bias[1] = value
    with pytest.raises(ValueError, match=r"NaN or infinite numbers in output\.bias; its training"):
        save_readout(readout, tmp_path / "r", BACKBONE)
    assert list(tmp_path.iterdir()) == []


def test_readouts_that_no_file_can_rebuild(tmp_path: Path) -> None:
    class Mine(AttentiveReadout):
        pass

    mine = Mine(8, 3, width=16, num_heads=2)
    with pytest.raises(ValueError, match=r"readout is a Mine, .* save one of AttentiveReadout, "):
        save_readout(mine, tmp_path / "r", BACKBONE)


def test_the_readout_resizes_as_its_features_were(tmp_path: Path) -> None:
    causal = dataclasses.replace(BACKBONE, time_method="causal")
    with pytest.raises(ValueError, match=r"readout has time_method 'paper' but .* by 'causal'"):
        save_readout(build(), tmp_path / "r", causal)


@pytest.mark.parametrize("value", [object(), float("nan")], ids=["object", "nan"])
def test_metadata_is_plain(tmp_path: Path, value: object) -> None:
    with pytest.raises(ValueError, match="metadata must hold plain JSON values"):
        save_readout(build(), tmp_path / "r", BACKBONE, {"score": value})
    assert list(tmp_path.iterdir()) == []


def test_no_file(tmp_path: Path) -> None:
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"no file {missing}; expected one that save_"):
            load_readout(missing, BACKBONE)


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "pickle"])
def test_files_that_are_not_safetensors(path: Path, damage: str) -> None:
    content = {
        "empty": b"",
        "cut": path.read_bytes()[:-5],
        "text": b"no tensors here",
        "pickle": pickle.dumps({"weights": [1.0] * 50}),
    }
    path.write_bytes(content[damage])
    with pytest.raises(ValueError, match=f"{path} is not a readable safetensors file"):
        load_readout(path, BACKBONE)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "is no readout of format 'probe-readouts/1' but of None; expected"),
        ({"readout": "[1]"}, "is no readout of format"),
        ({"readout": '{"format": "walt-core/2"}'}, "but of 'walt-core/2'"),
        ({"readout": '{"format": "probe-readouts/2"}'}, "but of 'probe-readouts/2'"),
        ({"readout": '{"format"'}, "is not valid JSON .*; it is damaged"),
        ({"readout": '{"format": "probe-readouts/1"}'}, "the header of .* has no class"),
    ],
)
def test_files_of_another_kind(path: Path, metadata: dict[str, str] | None, message: str) -> None:
    save_file(build().state_dict(), path, metadata)
    with pytest.raises(ValueError, match=message) as caught:
        load_readout(path, BACKBONE)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, s: h.update({"class": "Module"}), "unknown class 'Module'; known: AttentiveR"),
        (lambda h, s: h.update({"class": ["a"]}), "has no class"),
        (lambda h, s: h.pop("config"), "has no config"),
        (lambda h, s: h.update(backbone=None), "has no backbone"),
        (lambda h, s: h["config"].pop("num_outputs"), "no valid configuration .*num_outputs"),
        (lambda h, s: h["config"].update(depth=3), "no valid configuration of Attentive.*depth"),
        (lambda h, s: h["config"].update(width=2.5), "no valid configuration"),
        (lambda h, s: h["config"].update(num_heads=3), "num_heads 3 must divide width 16"),
        (lambda h, s: h["config"].update(width=2**62, num_heads=1), "no valid configuration"),
        (lambda h, s: h["backbone"].pop("block"), "no valid configuration .*block"),
        (lambda h, s: h["backbone"].update(block="4"), "no valid configuration"),
        (lambda h, s: s.pop("output.bias"), r"does not fit .*: missing output.bias; it was"),
        (lambda h, s: s.update(more=torch.zeros(1)), "left over more"),
        (
            lambda h, s: s.update({"output.bias": torch.zeros(4)}),
            r"output.bias is \(4,\), expected \(3,\)",
        ),
        (
            lambda h, s: s.update({"output.bias": torch.zeros(3, dtype=torch.int64)}),
            "output.bias is torch.int64, expected floating point",
        ),
        (
            lambda h, s: s.update({"output.bias": torch.tensor([0, torch.inf, 0])}),
            "NaN or infinite numbers in output.bias",
        ),
        (
            lambda h, s: (s.pop("output.bias"), s.update(more=torch.zeros(1))),
            "missing output.bias; left over more",
        ),
    ],
)
def test_files_that_were_changed(path: Path, change: Change, message: str) -> None:
    rewrite(path, change)
    with pytest.raises(ValueError, match=message) as caught:
        load_readout(path, BACKBONE)
    assert str(path) in str(caught.value)
