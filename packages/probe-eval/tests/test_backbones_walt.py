"""I-WALT and V-WALT as frozen backbones: what they compute, and what they refuse to load."""

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import walt_core
import walt_tokenizer
from probe_eval.backbone import load_backbone
from probe_eval.backbones.walt import WINDOWS, WaltBackbone, load, load_tokenizer
from probe_readouts import weights_hash

IDS = ["a", "b", "c"]


def features_of(backbone: WaltBackbone, clips: torch.Tensor, **asked: Any) -> dict[int, Any]:
    return backbone.features(backbone.encode(clips), **asked)


each_twin = pytest.mark.parametrize("name", WINDOWS)


@each_twin
def test_features_are_those_of_encoder_and_denoiser(
    twins: Path, clips: torch.Tensor, name: str
) -> None:
    backbone = load(name, str(twins))
    found = features_of(backbone, clips, blocks=(0, 3, 4), timestep=300, seed=5, sample_ids=IDS)
    tokenizer = walt_tokenizer.VideoTokenizer.from_pretrained(twins / "tokenizer")
    denoiser = walt_core.Walt.from_pretrained(twins / name)
    with torch.no_grad():
        latents = tokenizer.encode(clips, normalize=True)
    expected = denoiser.features(latents, blocks=(0, 3, 4), timestep=300, seed=5, sample_ids=IDS)
    assert found.keys() == expected.keys() == {0, 3, 4}
    for block in found:
        assert found[block].shape == (3, 2, 2, 2, backbone.width)
        # The default tolerance: the two copies of the weights lie at other addresses.
        torch.testing.assert_close(found[block], expected[block])


@each_twin
def test_nothing_is_trained(twins: Path, clips: torch.Tensor, name: str) -> None:
    backbone = load(name, str(twins))
    for module in (backbone.tokenizer, backbone.denoiser):
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
    features = features_of(backbone, clips, blocks=(4,), timestep=0, seed=0, sample_ids=IDS)
    assert not features[4].requires_grad
    assert load(name, str(twins)).weights_hash == backbone.weights_hash


@each_twin
def test_latents_are_ordinary_and_normalised(twins: Path, clips: torch.Tensor, name: str) -> None:
    backbone = load(name, str(twins))
    latents = backbone.encode(clips)
    assert latents.shape == (3, 4, 2, 2, 2)
    assert not latents.is_inference()
    assert not latents.requires_grad
    # The default tolerance: sums depend on where in memory the pixels lie.
    torch.testing.assert_close(latents, backbone.tokenizer.encode(clips, normalize=True))


def test_the_encoders_hash_is_that_of_the_tokenizer_and_its_configuration(twins: Path) -> None:
    image, video = (load(name, str(twins)) for name in ("i-walt", "v-walt"))
    assert image.encoder_hash == video.encoder_hash
    assert image.weights_hash != video.weights_hash
    tokenizer = load_tokenizer(twins / "tokenizer")
    tokenizer.latent_mean[0] += 1e-3
    image.denoiser.latent_mean.zero_()  # told no statistics, it goes with any tokenizer
    image.denoiser.latent_std.fill_(1)
    other = WaltBackbone("i-walt", tokenizer, image.denoiser)
    assert other.encoder_hash != image.encoder_hash
    tokenizer = load_tokenizer(twins / "tokenizer")
    tokenizer.config = dataclasses.replace(tokenizer.config, norm_groups=2)
    assert WaltBackbone("i-walt", tokenizer, image.denoiser).encoder_hash != image.encoder_hash


def test_sinusoids_of_timesteps_are_fp32_under_autocast(twins: Path, clips: torch.Tensor) -> None:
    """With frequencies in bf16 the features would be those of another timestep."""
    backbone = load("v-walt", str(twins))
    given: list[torch.Tensor] = []
    backbone.denoiser.timestep.proj_in.register_forward_pre_hook(
        lambda _, args: given.append(*args)
    )
    asked = {"blocks": (4,), "timestep": 723, "seed": 0, "sample_ids": IDS}
    exact = features_of(backbone, clips, **asked)[4]
    with torch.autocast("cpu", torch.bfloat16):
        found = features_of(backbone, clips, **asked)[4]
    assert given[1].dtype == torch.float32
    assert torch.equal(*given)
    assert found.dtype == torch.float32
    # 2e-2: bf16 has 8 bits, and rounds at every layer.
    assert 0 < float((found - exact).norm() / exact.norm()) < 2e-2


@each_twin
def test_all_parameters_are_counted(twins: Path, name: str) -> None:
    backbone = load(name, str(twins))
    modules = (backbone.tokenizer, backbone.denoiser)
    assert backbone.num_parameters == sum(p.numel() for m in modules for p in m.parameters())
    assert backbone.num_blocks == 4


def test_only_the_video_twin_looks_across_frames(twins: Path, clips: torch.Tensor) -> None:
    """Features of the first latent frame, which holds frame 0 alone."""
    later = clips.clone()
    later[:, :, 1:] = 0.5
    for name in WINDOWS:
        backbone = load(name, str(twins))
        one, two = (
            features_of(backbone, video, blocks=(4,), timestep=0, seed=0, sample_ids=IDS)[4][:, 0]
            for video in (clips, later)
        )
        assert torch.equal(one, two) == (name == "i-walt")


def test_noise_depends_on_the_name_of_the_clip(twins: Path, clips: torch.Tensor) -> None:
    backbone = load("v-walt", str(twins))

    def features(seed: int, ids: list[str]) -> torch.Tensor:
        same = clips[:1].expand(3, -1, -1, -1, -1)
        return features_of(backbone, same, blocks=(1,), timestep=500, seed=seed, sample_ids=ids)[1]

    first = features(0, ["a", "b", "a"])
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, features(1, ["a", "b", "a"]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1.5])
def test_pixels_that_are_none_are_refused(twins: Path, clips: torch.Tensor, bad: float) -> None:
    clips[1, 0, 0, 0, 0] = bad
    with pytest.raises(ValueError, match=r"(?i)nan|finite|\[-1, 1\]"):
        features_of(
            load("v-walt", str(twins)), clips, blocks=(1,), timestep=0, seed=0, sample_ids=IDS
        )


@pytest.mark.parametrize(
    "weight",
    [
        ("tokenizer", "encoder"),
        ("tokenizer", "decoder"),
        ("tokenizer", "latent_mean"),
        ("denoiser", "patch_embed.weight"),
        ("denoiser", "proj_out.bias"),
    ],
    ids=".".join,
)
def test_one_changed_weight_changes_the_hash(twins: Path, weight: tuple[str, str]) -> None:
    backbone = load("v-walt", str(twins))
    state = getattr(backbone, weight[0]).state_dict()
    tensor = next(value for key, value in state.items() if key.startswith(weight[1]))
    before = backbone.weights_hash
    tensor.view(-1)[-1] += 1e-3
    assert weights_hash(backbone.tokenizer, backbone.denoiser) != before
    tensor.view(-1)[-1] -= 1e-3


def test_hash_covers_names_types_and_shapes() -> None:
    def hashed(**tensors: torch.Tensor) -> str:
        module = torch.nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return weights_hash(module)

    zeros = torch.zeros(4)
    hashes = [
        hashed(a=zeros),
        hashed(b=zeros),
        hashed(a=zeros.reshape(2, 2)),
        hashed(a=zeros.half()),
        hashed(a=zeros.bfloat16()),
        hashed(a=zeros, b=zeros),
    ]
    assert len(set(hashes)) == len(hashes)


# --- What does not load --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["i-walt", "v-walt"])
def test_a_missing_folder_says_how_to_make_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"no tokenizer/config\.json.*pretrain twins"):
        load_backbone(name, str(tmp_path / "nothing"))


@pytest.mark.parametrize("model", ["tokenizer", "v-walt"])
@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(
    write_twins: Callable[[Path], Path], tmp_path: Path, model: str, file: str
) -> None:
    (write_twins(tmp_path) / model / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"no {model}/{file}; make it with"):
        load_backbone("v-walt", str(tmp_path))


def test_the_other_twin_may_be_missing(write_twins: Callable[[Path], Path], tmp_path: Path) -> None:
    shutil.rmtree(write_twins(tmp_path) / "v-walt")
    load_backbone("i-walt", str(tmp_path))


def test_a_folder_without_a_tokenizer_is_named(twins: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no config\.json, so it holds no tokenizer"):
        load_tokenizer(tmp_path)
    assert not load_tokenizer(twins / "tokenizer").training


@pytest.mark.parametrize(
    "file",
    [f"{m}/{f}" for m in ("tokenizer", "v-walt") for f in ("config.json", "model.safetensors")],
)
def test_a_cut_file_is_named(
    write_twins: Callable[[Path], Path], tmp_path: Path, file: str
) -> None:
    path = write_twins(tmp_path) / file
    content = path.read_bytes()
    for cut in (0, 1, 8, 9, 200, len(content) // 2, len(content) - 3):
        path.write_bytes(content[:cut])
        with pytest.raises(ValueError, match=re.escape(file)):
            load_backbone("v-walt", str(tmp_path))


@pytest.mark.parametrize(("there", "wanted"), [("i-walt", "v-walt"), ("v-walt", "i-walt")])
def test_a_twin_under_the_others_name_is_refused(
    write_twins: Callable[[Path], Path], tmp_path: Path, there: str, wanted: str
) -> None:
    write_twins(tmp_path)
    shutil.copytree(tmp_path / there, tmp_path / wanted, dirs_exist_ok=True)
    with pytest.raises(ValueError, match=rf"{wanted} has windows .* {wanted} needs"):
        load_backbone(wanted, str(tmp_path))


@pytest.mark.parametrize(("there", "wanted"), [("v-walt", "tokenizer"), ("tokenizer", "v-walt")])
@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_files_in_the_place_of_another_models_are_refused(
    write_twins: Callable[[Path], Path], tmp_path: Path, there: str, wanted: str, file: str
) -> None:
    write_twins(tmp_path)
    shutil.copy(tmp_path / there / file, tmp_path / wanted)
    with pytest.raises(ValueError, match=rf"{wanted}/{file}"):
        load_backbone("v-walt", str(tmp_path))


@pytest.mark.parametrize("name", ["latent_mean", "latent_std"])
def test_a_tokenizer_of_other_statistics_is_refused(
    write_twins: Callable[[Path], Path], tmp_path: Path, name: str
) -> None:
    """Such as one that was trained again after the denoiser."""
    write_twins(tmp_path)
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    getattr(tokenizer, name)[2] += 1e-3
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ValueError, match=r"v-walt was trained on latents of other .*; use"):
        load_backbone("v-walt", str(tmp_path))


def test_a_denoiser_that_was_told_no_statistics_goes_with_any_tokenizer(twins: Path) -> None:
    denoiser = walt_core.Walt.from_pretrained(twins / "v-walt")
    denoiser.latent_mean.zero_()
    denoiser.latent_std.fill_(1)
    WaltBackbone("v-walt", load_tokenizer(twins / "tokenizer"), denoiser)


def test_statistics_are_compared_in_the_type_of_the_denoiser(twins: Path) -> None:
    denoiser = walt_core.Walt.from_pretrained(twins / "v-walt", dtype=torch.bfloat16)
    WaltBackbone("v-walt", load_tokenizer(twins / "tokenizer"), denoiser)


def test_tokenizer_and_denoiser_must_fit_each_other(twins: Path) -> None:
    denoiser = walt_core.Walt.from_pretrained(twins / "v-walt")
    config = walt_tokenizer.TokenizerConfig(
        base_channels=8, channel_multipliers=(1, 1), temporal_strides=(2,), norm_groups=4
    )
    with pytest.raises(ValueError, match=r"8 latent channels but v-walt takes 4; use the pair"):
        WaltBackbone("v-walt", walt_tokenizer.VideoTokenizer(config), denoiser)
