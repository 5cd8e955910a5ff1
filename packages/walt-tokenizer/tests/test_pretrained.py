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

from walt_tokenizer import TokenizerConfig, VideoTokenizer, pretrained

CONFIG = TokenizerConfig(
    base_channels=8,
    channel_multipliers=(1, 2),
    temporal_strides=(2,),
    num_res_blocks=1,
    latent_channels=4,
    norm_groups=4,
)
FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture
def model(build: Callable[..., VideoTokenizer]) -> VideoTokenizer:
    model = build(CONFIG)
    model.latent_mean.copy_(torch.arange(4.0))
    model.latent_std.copy_(1 + torch.arange(4.0))
    return model


@pytest.fixture
def folder(model: VideoTokenizer, tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may unpickle, whatever the file."""

    def fail(*args: object, **options: object) -> None:
        pytest.fail("a pickle was read")

    monkeypatch.setattr(torch, "load", fail)
    monkeypatch.setattr("pickle.load", fail)
    monkeypatch.setattr("pickle.loads", fail)


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Changes the tensors of a good folder and nothing else."""
    path = folder / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    change(state)
    save_file(state, path, metadata)


def assert_same(model: VideoTokenizer, other: VideoTokenizer) -> None:
    assert model.config == other.config
    state, values = model.state_dict(), other.state_dict()
    assert state.keys() == values.keys()
    for name, value in state.items():
        assert value.dtype == values[name].dtype, name
        assert torch.equal(value, values[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_round_trip(model: VideoTokenizer, tmp_path: Path, dtype: torch.dtype) -> None:
    model.to(dtype).train().save_pretrained(tmp_path)
    loaded = VideoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is VideoTokenizer
    assert_same(model, loaded)
    assert not any(module.training for module in loaded.modules())
    video = torch.zeros(1, 3, 3, 8, 8, dtype=dtype)
    with torch.no_grad():
        found, expected = loaded.encode(video, normalize=True), model.encode(video, normalize=True)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("changes", [{"quantizer": "lfq"}, {"down_kernel": 4}])
def test_round_trip_of_other_configurations(
    build: Callable[..., VideoTokenizer], tmp_path: Path, changes: dict[str, Any]
) -> None:
    model = build(dataclasses.replace(CONFIG, **changes))
    model.save_pretrained(tmp_path)
    assert_same(model, VideoTokenizer.from_pretrained(str(tmp_path)))


def test_an_image_tokenizer_survives(build: Callable[..., VideoTokenizer], tmp_path: Path) -> None:
    model = build(dataclasses.replace(CONFIG, time_kernel=1, temporal_strides=(1,)))
    model.save_pretrained(tmp_path)
    assert_same(model, VideoTokenizer.from_pretrained(tmp_path))


def test_a_folder_within_the_working_directory(
    model: VideoTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`a/b` could also be a repository: the folder comes first."""
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("a/b")
    assert_same(model, VideoTokenizer.from_pretrained("a/b"))


def test_a_loaded_model_can_be_trained(folder: Path) -> None:
    loaded = VideoTokenizer.from_pretrained(folder)
    loaded(torch.zeros(1, 3, 3, 8, 8)).sum().backward()
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.encoder.conv_in.conv.weight.grad is not None


def test_the_loaded_model_goes_where_it_is_told(folder: Path) -> None:
    loaded = VideoTokenizer.from_pretrained(folder, device="meta")
    assert {value.device.type for value in loaded.state_dict().values()} == {"meta"}


def test_the_files(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == FILES
    values = json.loads((folder / "config.json").read_text())
    assert values.pop("format") == pretrained.FORMAT
    assert TokenizerConfig.from_dict(values) == CONFIG
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n")
    assert "library_name: walt-tokenizer" in card
    assert "- video-tokenizer" in card


def test_a_card_that_someone_wrote_stays(model: VideoTokenizer, folder: Path) -> None:
    (folder / "README.md").write_text("ours")
    model.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "ours"


def test_a_card_is_there_whole_or_not_at_all(
    model: VideoTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_half(self: ModelCard, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(ModelCard, "save", write_half)
    with pytest.raises(OSError, match="disk full"):
        model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_saving_again_replaces(
    model: VideoTokenizer, folder: Path, build: Callable[..., VideoTokenizer]
) -> None:
    other = build(dataclasses.replace(CONFIG, num_res_blocks=2), seed=1)
    other.save_pretrained(folder)
    assert_same(other, VideoTokenizer.from_pretrained(folder))
    assert sorted(path.name for path in folder.iterdir()) == FILES


@pytest.mark.parametrize("stage", ["weights half", "weights", "config half"])
def test_a_save_that_dies_leaves_one_model_or_none(
    folder: Path,
    build: Callable[..., VideoTokenizer],
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    """The old files stay until the new ones are complete; between the two, loading is refused."""
    # The shapes of the two agree, so only what the files say can tell them apart.
    other = build(dataclasses.replace(CONFIG, quantizer="lfq"), seed=1)
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
            VideoTokenizer.from_pretrained(folder)
    else:
        assert (folder / "model.safetensors").read_bytes() == before["model.safetensors"]
        VideoTokenizer.from_pretrained(folder)


def test_files_of_two_models_are_refused(
    folder: Path, build: Callable[..., VideoTokenizer], tmp_path: Path
) -> None:
    """Also where all shapes agree."""
    for i, changes in enumerate([{"quantizer": "lfq"}, {"norm_groups": 2}, {"latent_channels": 5}]):
        other = tmp_path / str(i)
        build(dataclasses.replace(CONFIG, **changes)).save_pretrained(other)
        shutil.copy(folder / "model.safetensors", other)
        with pytest.raises(ValueError, match="was saved with another configuration than"):
            VideoTokenizer.from_pretrained(other)


def test_weights_without_a_configuration_inside_are_judged_by_their_shapes(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path), path)
    VideoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "latent_channels": 5}))
    with pytest.raises(ValueError, match=r"latent_mean is \(4,\), expected \(5,\)"):
        VideoTokenizer.from_pretrained(folder)


def test_every_tensor_that_does_not_fit_is_named(folder: Path) -> None:
    def change(state: dict[str, Tensor]) -> None:
        del state["encoder.conv_in.conv.weight"]
        del state["latent_mean"]
        state["decoder.conv_out.conv.bias"] = torch.zeros(5)
        state["latent_std"] = torch.ones(4, 1)
        state["extra.weight"] = torch.zeros(2)
        state["decoder.extra"] = torch.zeros(())
        state["encoder.conv_out.conv.bias"] = torch.zeros(4, dtype=torch.int64)

    rewrite(folder, change)
    with pytest.raises(ValueError, match="does not fit") as caught:
        VideoTokenizer.from_pretrained(folder)
    message = str(caught.value)
    for part in (
        "missing encoder.conv_in.conv.weight (8, 3, 3, 3, 3)",
        "missing latent_mean (4,)",
        "decoder.conv_out.conv.bias is (5,), expected (3,)",
        "latent_std is (4, 1), expected (4,)",
        "unexpected extra.weight (2,)",
        "unexpected decoder.extra ()",
        "encoder.conv_out.conv.bias is of torch.int64, expected floating point",
    ):
        assert part in message
    assert str(CONFIG) in message


def test_no_tensor_can_be_left_out(folder: Path) -> None:
    names = list(load_file(folder / "model.safetensors"))
    for name in names[::7]:
        copy = folder.parent / "copy"
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        rewrite(copy, lambda state, name=name: state.__delitem__(name))
        with pytest.raises(ValueError, match=f"missing {name} "):
            VideoTokenizer.from_pretrained(copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(
    model: VideoTokenizer, folder: Path, value: float, tmp_path: Path
) -> None:
    name = "decoder.conv_out.conv.weight"

    def change(state: dict[str, Tensor]) -> None:
        state[name][0, 0, 0, 0, 0] = value

    rewrite(folder, change)
    with pytest.raises(ValueError, match=rf"NaN or infinite numbers in {name}; .* earlier"):
        VideoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        change(model.state_dict())
    with pytest.raises(ValueError, match=rf"the model holds NaN or infinite numbers in {name}"):
        model.save_pretrained(tmp_path / "other")
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
            VideoTokenizer.from_pretrained(folder)
    path.write_bytes(data + b"\0")
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        VideoTokenizer.from_pretrained(folder)
    path.write_bytes(data)
    VideoTokenizer.from_pretrained(folder)


def test_a_configuration_cut_short_anywhere_is_refused(folder: Path) -> None:
    path = folder / "config.json"
    data = path.read_bytes()
    for cut in range(len(data.rstrip())):
        path.write_bytes(data[:cut])
        with pytest.raises(ValueError, match=r"config\.json is not valid JSON .*; copy it again"):
            VideoTokenizer.from_pretrained(folder)
    # What is left of the file without its last line break is whole.
    path.write_bytes(data.rstrip())
    VideoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "is not valid JSON"),
        (b"[]", "is not the configuration of a tokenizer"),
        (b"{}", "is not the configuration of a tokenizer"),
        (b'{"format": "walt/1"}', "expected format 'walt-tokenizer/1'"),
        (b'{"format": "walt-tokenizer/1", "base_chanels": 8}', "base_chanels"),
        (b'{"format": "walt-tokenizer/1", "down_kernel": 7}', "down_kernel 7 must be 3 or 4"),
    ],
)
def test_a_bad_configuration_is_refused(folder: Path, content: bytes, message: str) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        VideoTokenizer.from_pretrained(folder)


@pytest.mark.usefixtures("_unchecked")
@pytest.mark.parametrize(
    "field",
    [
        '"base_channels": "8"',
        '"base_channels": 8.5',
        '"channel_multipliers": 3',
        '"temporal_strides": null',
        '"norm_groups": -1',
        '"norm_groups": null',
        '"quantizer": []',
        '"num_res_blocks": "1"',
    ],
)
def test_a_configuration_of_wrong_types_is_refused(folder: Path, field: str) -> None:
    content = f'{{"format": "walt-tokenizer/1", {field}}}'
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match="holds no valid tokenizer configuration"):
        VideoTokenizer.from_pretrained(folder)


def test_a_pickle_is_refused(model: VideoTokenizer, folder: Path) -> None:
    torch.save(model.state_dict(), folder / "model.safetensors")
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        VideoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"tokenizer has no {name}; expected a folder"):
        VideoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", ["nowhere", "./a/b", "../b", "/no/where", "~/b", "a/b/c", "/b"])
def test_a_missing_folder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pretrained, "hf_hub_download", lambda *args, **options: pytest.fail("asked")
    )
    with pytest.raises(FileNotFoundError, match=rf"there is no folder {name}; expected one that"):
        VideoTokenizer.from_pretrained(name)


@pytest.mark.parametrize("inside", ["", "{", "a tokenizer", "[]"])
def test_weights_with_something_else_inside_are_refused(folder: Path, inside: str) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path), path, {"config": inside})
    with pytest.raises(ValueError, match=r"model\.safetensors was saved with another config"):
        VideoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "value"), [("base_channels", 8.5), ("num_res_blocks", 1.5), ("latent_channels", None)]
)
def test_types_that_only_building_finds_are_refused(folder: Path, name: str, value: object) -> None:
    path, weights = folder / "config.json", folder / "model.safetensors"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    save_file(load_file(weights), weights)  # which are then judged by their shapes
    with pytest.raises(ValueError, match=r"config\.json holds no valid tokenizer configuration"):
        VideoTokenizer.from_pretrained(folder)
