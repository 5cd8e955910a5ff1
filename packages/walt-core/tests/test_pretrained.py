"""Folders: round trip, damaged and mixed-up files, and tensors that do not fit."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from walt_core import Walt, WaltConfig, pretrained

FILES = ["README.md", "config.json", "model.safetensors"]
Build = Callable[..., Walt]
Same = Callable[[Walt, Walt], None]

pytestmark = pytest.mark.usefixtures("_no_pickle")


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Changes the tensors of a good folder and nothing else."""
    path = folder / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    change(state)
    save_file(state, path, metadata)


def predict(model: Walt) -> Tensor:
    """What a model makes of the same noisy latents at two noise levels."""
    latents = torch.randn(2, 4, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(latents.to(model.proj_out.weight.dtype), torch.tensor([0, 700]))


# --- What comes back -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_round_trip(saved: Walt, assert_same: Same, tmp_path: Path, dtype: torch.dtype) -> None:
    saved.to(dtype).train().save_pretrained(tmp_path)
    loaded = Walt.from_pretrained(tmp_path)
    assert type(loaded) is Walt
    assert_same(saved, loaded)
    assert not any(module.training for module in loaded.modules())
    # The default tolerance of the type: the two copies of the weights lie at other addresses.
    torch.testing.assert_close(predict(loaded), predict(saved.eval()))


@pytest.mark.parametrize(
    "changes",
    [
        {"windows": "spatial"},
        {"position_bias": "axial"},
        {"num_classes": 0, "text_width": 0},
        {"self_conditioning": False, "frame_conditioning": False},
    ],
    ids=str,
)
def test_round_trip_of_other_configurations(
    build: Build, small: WaltConfig, assert_same: Same, tmp_path: Path, changes: dict[str, Any]
) -> None:
    model = build(dataclasses.replace(small, **changes))
    model.save_pretrained(tmp_path)
    assert_same(model, Walt.from_pretrained(str(tmp_path)))
    recorded = json.loads((tmp_path / "config.json").read_text())
    assert {name: recorded[name] for name in changes} == changes


def test_the_statistics_of_the_latents_travel(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    assert state["latent_mean"].tolist() == [0, 1, 2, 3]
    assert state["latent_std"].tolist() == [1, 2, 3, 4]
    loaded = Walt.from_pretrained(folder)
    assert torch.equal(loaded.latent_mean, state["latent_mean"])
    assert torch.equal(loaded.latent_std, state["latent_std"])


def test_a_folder_within_the_working_directory(
    saved: Walt, assert_same: Same, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`a/b` could also be a repository: the folder comes first."""
    monkeypatch.chdir(tmp_path)
    saved.save_pretrained("a/b")
    assert_same(saved, Walt.from_pretrained("a/b"))


def test_a_loaded_model_is_complete(folder: Path) -> None:
    """Built without memory for its weights, a model still has every tensor, saved or not."""
    loaded = Walt.from_pretrained(folder)
    tensors = dict(loaded.named_parameters()) | dict(loaded.named_buffers())
    assert {name for name, tensor in tensors.items() if tensor.is_meta} == set()
    loaded.to("cpu")


def test_a_loaded_model_can_be_trained(folder: Path) -> None:
    loaded = Walt.from_pretrained(folder)
    loaded(torch.zeros(1, 4, 5, 4, 4), torch.tensor([300])).sum().backward()
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.patch_embed.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_loaded_model_has_the_type_it_is_told(
    saved: Walt, folder: Path, assert_same: Same, dtype: torch.dtype
) -> None:
    loaded = Walt.from_pretrained(folder, dtype=dtype)
    assert {value.dtype for value in loaded.state_dict().values()} == {dtype}
    assert_same(saved.to(dtype), loaded)
    torch.testing.assert_close(predict(loaded), predict(saved))
    kinds = {buffer.dtype for buffer in loaded.buffers() if not buffer.is_floating_point()}
    assert kinds <= {torch.int64}, "what is an index stays one"


# --- What is written -----------------------------------------------------------------------------


def test_the_files(folder: Path, small: WaltConfig) -> None:
    assert sorted(path.name for path in folder.iterdir()) == FILES
    values = json.loads((folder / "config.json").read_text())
    assert values.pop("format") == pretrained.FORMAT == "walt-core/2"
    assert WaltConfig.from_dict(values) == small
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n")
    assert "library_name: walt-core" in card
    assert "- video-diffusion" in card


def test_a_card_that_someone_wrote_stays(saved: Walt, folder: Path) -> None:
    (folder / "README.md").write_text("ours")
    saved.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "ours"


def test_a_card_is_there_whole_or_not_at_all(
    saved: Walt, tmp_path: Path, assert_same: Same, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_half(self: ModelCard, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(ModelCard, "save", write_half)
    with pytest.raises(OSError, match="disk full"):
        saved.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert_same(saved, Walt.from_pretrained(tmp_path))


def test_saving_again_replaces(
    folder: Path, build: Build, small: WaltConfig, assert_same: Same
) -> None:
    other = build(dataclasses.replace(small, depth=3), seed=1)
    other.save_pretrained(folder)
    assert_same(other, Walt.from_pretrained(folder))
    assert sorted(path.name for path in folder.iterdir()) == FILES


@pytest.mark.parametrize("stage", ["weights half", "weights", "config half"])
def test_a_save_that_dies_leaves_one_model_or_none(
    folder: Path,
    build: Build,
    small: WaltConfig,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    """The old files stay until the new ones are complete; between the two, loading is refused."""
    # The shapes of the two agree, so only what the files say can tell them apart.
    other = build(dataclasses.replace(small, attention="math"), seed=1)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    replace, replaced = pretrained.os.replace, []

    def write_half(state: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    def replace_some(source: Path, target: Path) -> None:
        if stage == "weights" or (stage == "config half" and replaced):
            raise OSError("disk full")
        replaced.append(Path(target).name)
        # Whatever is replaced, there has been a configuration all the time.
        assert (folder / "config.json").read_bytes() == before["config.json"]
        replace(source, target)

    if stage == "weights half":
        monkeypatch.setattr(pretrained, "save_file", write_half)
    monkeypatch.setattr(pretrained.os, "replace", replace_some)
    with pytest.raises(OSError, match="disk full"):
        other.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert (folder / "config.json").read_bytes() == before["config.json"]
    if stage == "config half":
        assert replaced == ["model.safetensors"]
        with pytest.raises(ValueError, match="was saved with another configuration than"):
            Walt.from_pretrained(folder)
    else:
        assert (folder / "model.safetensors").read_bytes() == before["model.safetensors"]
        Walt.from_pretrained(folder)


# --- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"attention": "math"}, {"windows": "spatial"}, {"num_heads": 4}, {"num_classes": 5}],
    ids=str,
)
def test_files_of_two_models_are_refused(
    folder: Path, build: Build, small: WaltConfig, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Also where all shapes agree."""
    other = tmp_path / "other"
    build(dataclasses.replace(small, **changes)).save_pretrained(other)
    shutil.copy(folder / "model.safetensors", other)
    with pytest.raises(ValueError, match="was saved with another configuration than"):
        Walt.from_pretrained(other)


def test_weights_without_a_configuration_inside_are_judged_by_their_shapes(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path), path)
    Walt.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "latent_channels": 5}))
    with pytest.raises(ValueError, match=r"latent_mean is \(4,\), expected \(5,\)"):
        Walt.from_pretrained(folder)


@pytest.mark.parametrize("inside", ["", "{", "a denoiser", "[]", '{"format": "walt-core/1"}'])
def test_weights_with_something_else_inside_are_refused(folder: Path, inside: str) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path), path, {"config": inside})
    with pytest.raises(ValueError, match=r"model\.safetensors was saved with another config"):
        Walt.from_pretrained(folder)


def test_every_tensor_that_does_not_fit_is_named(folder: Path, small: WaltConfig) -> None:
    def change(state: dict[str, Tensor]) -> None:
        del state["patch_embed.weight"]
        del state["latent_mean"]
        state["proj_out.bias"] = torch.zeros(5)
        state["latent_std"] = torch.ones(4, 1)
        state["extra.weight"] = torch.zeros(2)
        state["blocks.extra"] = torch.zeros(())
        state["patch_embed.bias"] = torch.zeros(16, dtype=torch.int64)

    rewrite(folder, change)
    with pytest.raises(ValueError, match="does not fit") as caught:
        Walt.from_pretrained(folder)
    message = str(caught.value)
    for part in (
        f"missing patch_embed.weight (16, {small.input_channels})",
        "missing latent_mean (4,)",
        "proj_out.bias is (5,), expected (4,)",
        "latent_std is (4, 1), expected (4,)",
        "unexpected extra.weight (2,)",
        "unexpected blocks.extra ()",
        "patch_embed.bias is of torch.int64, expected floating point",
    ):
        assert part in message
    assert str(small) in message


def test_no_tensor_can_be_left_out(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    for name in list(load_file(folder / "model.safetensors"))[::7]:
        rewrite(folder, lambda state, name=name: state.__delitem__(name))
        with pytest.raises(ValueError, match=f"missing {name} "):
            Walt.from_pretrained(folder)
        (folder / "model.safetensors").write_bytes(whole)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["proj_out.weight", "latent_std"])
def test_numbers_that_are_not_finite_are_refused(
    saved: Walt, folder: Path, name: str, value: float, tmp_path: Path
) -> None:
    def change(state: dict[str, Tensor]) -> None:
        state[name].view(-1)[1] = value

    rewrite(folder, change)
    with pytest.raises(ValueError, match=rf"NaN or infinite numbers in {name}; .* earlier"):
        Walt.from_pretrained(folder)
    with torch.no_grad():
        change(saved.state_dict())
    with pytest.raises(ValueError, match=rf"the model holds NaN or infinite numbers in {name}"):
        saved.save_pretrained(tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


def test_weights_cut_short_anywhere_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    cuts = {*range(12), *range(12, header, 211), header - 1, header, header + 1}
    cuts |= {*range(header, len(data), len(data) // 60), len(data) - 1}
    for cut in sorted(cuts):
        path.write_bytes(data[:cut])
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            Walt.from_pretrained(folder)
    path.write_bytes(data + b"\0")
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        Walt.from_pretrained(folder)
    path.write_bytes(data)
    Walt.from_pretrained(folder)


def test_a_configuration_cut_short_anywhere_is_refused(folder: Path) -> None:
    path = folder / "config.json"
    data = path.read_bytes()
    for cut in [*range(0, len(data.rstrip()), 5), len(data.rstrip()) - 1]:
        path.write_bytes(data[:cut])
        with pytest.raises(ValueError, match=r"config\.json is not valid JSON .*; copy it again"):
            Walt.from_pretrained(folder)
    path.write_bytes(data.rstrip())  # without its last line break it is whole
    Walt.from_pretrained(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "is not valid JSON"),
        (b"[]", "is not the configuration of a denoiser"),
        (b"{}", "is not the configuration of a denoiser"),
        (b'{"format": "walt-tokenizer/1"}', "expected format 'walt-core/2'"),
        (b'{"format": "walt-core/1", "width": 16, "depth": 2}', "expected format 'walt-core/2'"),
        (b'{"format": "walt-core/2", "width": 16, "depth": 2, "widht": 16}', "widht"),
        (b'{"format": "walt-core/2", "width": 16}', "depth"),
        (b'{"format": "walt-core/2", "width": 17, "depth": 2}', "num_heads 16 must divide"),
    ],
)
def test_a_bad_configuration_is_refused(folder: Path, content: bytes, message: str) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Walt.from_pretrained(folder)


@pytest.mark.usefixtures("_unchecked")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("width", "16"),
        ("width", 16.0),
        ("depth", 2.5),
        ("depth", None),
        ("mlp_ratio", 1.5),
        ("adaln_rank", [2]),
        ("latent_size", 5),
        ("latent_size", [5, 4]),
        ("latent_size", [5.0, 4.0, 4.0]),
        ("spatial_window", "144"),
        ("windows", []),
        ("windows", None),
        ("text_width", "8"),
        ("text_width", 8.5),
        ("num_classes", 1.5),
        ("self_conditioning", "no"),
    ],
)
def test_a_configuration_of_wrong_types_is_refused(folder: Path, name: str, value: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    weights = folder / "model.safetensors"
    save_file(load_file(weights), weights)  # which are then judged by their shapes
    with pytest.raises(ValueError, match=r"config\.json holds no valid denoiser configuration"):
        Walt.from_pretrained(folder)


def test_a_pickle_is_refused(saved: Walt, folder: Path) -> None:
    torch.save(saved.state_dict(), folder / "model.safetensors")
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        Walt.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"walt has no {name}; expected a folder"):
        Walt.from_pretrained(folder)


@pytest.mark.parametrize("name", ["nowhere", "./a/b", "../b", "/no/where", "~/b", "a/b/c", "/b"])
def test_a_missing_folder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pretrained, "hf_hub_download", lambda *args, **options: pytest.fail("asked")
    )
    with pytest.raises(FileNotFoundError, match=rf"there is no folder {name}; expected one that"):
        Walt.from_pretrained(name)
