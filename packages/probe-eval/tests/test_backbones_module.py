"""A user's PyTorch model as a backbone: ten lines make one, and each mistake is told in one."""

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor, nn

from probe_eval.backbone import (
    FrozenBackbone,
    ModuleBackbone,
    Pixels,
    Submodules,
    check_features,
    load_backbone,
)

IDS = ["a", "b", "c"]
ASKED = {"timestep": 0, "seed": 0, "sample_ids": IDS}


class VideoTransformer(nn.Module):
    """As of a library: takes `b t c h w`, has tubelets of 2 x 8 x 8 and a class token."""

    def __init__(self, width: int = 12, depth: int = 3) -> None:
        super().__init__()
        self.embed = nn.Conv3d(3, width, (2, 8, 8), (2, 8, 8))
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 16, batch_first=True) for _ in range(depth)
        )

    def forward(self, pixels: Tensor) -> list[Tensor]:
        tokens = rearrange(
            self.embed(rearrange(pixels, "b t c h w -> b c t h w")), "b d t h w -> b (t h w) d"
        )
        states = [torch.cat([self.cls.expand(len(tokens), -1, -1), tokens], dim=1)]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return states


class Pictures(nn.Module):
    """A convolutional network of pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 4, 4)
        self.head = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Dropout(0.5))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.stem(pictures))


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Types are not checked, as outside of tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def seeded(kind: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind()


def read_states(model: nn.Module, video: Tensor, blocks: tuple[int, ...]) -> dict[int, Tensor]:
    states = model(rearrange(video, "b c t h w -> b t c h w"))
    return {
        k: rearrange(states[k][:, 1:], "b (t h w) d -> b t h w d", t=2, h=2, w=2) for k in blocks
    }


@pytest.fixture
def by_function() -> ModuleBackbone:
    return ModuleBackbone(
        "mine", seeded(VideoTransformer), read_states, 3, 12, pixels=Pixels(num_frames=4)
    )


@pytest.fixture
def by_names() -> ModuleBackbone:
    places = Submodules(
        ["layers.0", "layers.1", "layers.2"],
        takes="b t c h w",
        grid=lambda t, h, w: (t // 2, h // 8, w // 8),
        skip=1,
    )
    return ModuleBackbone(
        "mine", seeded(VideoTransformer), places, width=12, pixels=Pixels(num_frames=4)
    )


def test_both_ways_read_the_same(
    by_function: ModuleBackbone, by_names: ModuleBackbone, clips: Tensor
) -> None:
    first = by_function.features(by_function.encode(clips), blocks=(1, 3), **ASKED)
    second = by_names.features(by_names.encode(clips), blocks=(0, 2), **ASKED)
    assert first[1].shape == (3, 2, 2, 2, 12)
    assert torch.equal(first[1], second[0])
    assert torch.equal(first[3], second[2])
    assert (by_function.num_blocks, by_names.num_blocks) == (3, 2)
    assert not torch.equal(first[1], first[3])


def test_it_is_a_frozen_backbone(by_function: ModuleBackbone, clips: Tensor) -> None:
    assert isinstance(by_function, FrozenBackbone)
    assert by_function.num_parameters == sum(p.numel() for p in by_function.model.parameters())
    assert not by_function.model.training
    assert by_function.encoder_hash == ""
    features = by_function.features(by_function.encode(clips), blocks=(3,), **ASKED)[3]
    assert not features.requires_grad
    assert torch.equal(features, by_function.features(clips, blocks=(3,), **ASKED)[3])


def test_pictures_are_read_frame_by_frame(clips: Tensor) -> None:
    model = seeded(Pictures)
    places = Submodules(["stem", "head"], takes="(b t) c h w", gives="(b t) d h w")
    backbone = ModuleBackbone("pictures", model, places, width=6)
    grid = backbone.features(clips, blocks=(0, 1), **ASKED)
    assert grid[1].shape == (3, 5, 4, 4, 6)
    with torch.no_grad():
        alone = model(clips[2, :, 3][None])[0]
    torch.testing.assert_close(grid[1][2, 3], rearrange(alone, "d h w -> h w d"))


def test_pixels_are_as_the_model_wants_them(clips: Tensor) -> None:
    seen = []

    def read(model: nn.Module, video: Tensor, blocks: tuple[int, ...]) -> dict[int, Tensor]:
        seen.append(video)
        return {0: torch.zeros(3, 1, 1, 1, 1)}

    pixels = Pixels(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), size=8, num_frames=2)
    ModuleBackbone("m", seeded(Pictures), read, 0, 1, pixels=pixels).features(
        torch.full_like(clips, 0.5), blocks=(0,), **ASKED
    )
    (video,) = seen
    assert video.shape == (3, 3, 2, 8, 8)
    expected = torch.tensor([(0.75 - 0.4) / 0.2, (0.75 - 0.5) / 0.3, (0.75 - 0.6) / 0.4])
    torch.testing.assert_close(video[0, :, 1, 3, 3], expected)
    torch.testing.assert_close(Pixels()(clips), clips)  # pixels come in [-1, 1]


def test_the_hash_covers_weights_and_adapter(by_names: ModuleBackbone) -> None:
    def hashed(model: nn.Module, read: Any = by_names.read, **more: Any) -> str:
        return ModuleBackbone(
            "other name", model, read, 2, 12, **{"pixels": by_names.pixels, **more}
        ).weights_hash

    assert hashed(seeded(VideoTransformer)) == by_names.weights_hash
    changed = seeded(VideoTransformer)
    with torch.no_grad():
        changed.cls[0, 0, 0] += 1e-3
    others = {
        hashed(changed),
        hashed(seeded(VideoTransformer), pixels=Pixels(size=16, num_frames=4)),
        hashed(seeded(VideoTransformer), Submodules(["embed"], gives="b d t h w")),
        hashed(seeded(VideoTransformer), read_states),
        by_names.weights_hash,
    }
    assert len(others) == 5


# --- Noise ---------------------------------------------------------------------------------------


def test_without_noise_the_timestep_is_0(by_names: ModuleBackbone, clips: Tensor) -> None:
    check_features(by_names, block=2, timestep=0)
    assert by_names.noise_level(0) == {"alpha": 1.0, "sigma": 0.0, "log_snr": float("inf")}
    with pytest.raises(ValueError, match=r"timestep 200 must be 0: backbone 'mine' knows no noise"):
        by_names.features(clips, blocks=(0,), timestep=200, seed=0, sample_ids=IDS)


def test_an_adapter_may_know_noise(clips: Tensor) -> None:
    given = {}

    def read(model: nn.Module, video: Tensor, blocks: tuple[int, ...], **noise: Any) -> Any:
        given.update(noise)
        return {0: torch.zeros(3, 1, 1, 1, 1)}

    def level(timestep: int) -> dict[str, float]:
        return {"alpha": 0.8, "sigma": 0.6, "log_snr": 0.5 + timestep}

    backbone = ModuleBackbone("m", seeded(Pictures), read, 0, 1, noise_level=level)
    backbone.features(clips, blocks=(0,), timestep=7, seed=3, sample_ids=IDS)
    assert given == {"timestep": 7, "seed": 3, "sample_ids": IDS}
    assert backbone.noise_level(7)["log_snr"] == 7.5


# --- Mistakes ------------------------------------------------------------------------------------


def fails(model: nn.Module, video: Tensor, blocks: tuple[int, ...]) -> dict[int, Tensor]:
    return {0: {}["states"]}


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda v: v, "is of type Tensor; expected a dict of block -> features"),
        (lambda v: {1: v}, "lacks block 0, has 1; expected a dict"),
        (lambda v: {0: "x"}, "for block 0 is str, not floats"),
        (
            lambda v: {0: torch.zeros(3, 1, 1, 1, 4, dtype=torch.int64)},
            "is torch.int64, not floats",
        ),
        (lambda v: {0: torch.zeros(3, 8, 4)}, r"is \(3, 8, 4\); expected .* with b=3, d=4"),
        (lambda v: {0: torch.zeros(3, 1, 1, 1, 5)}, r"is \(3, 1, 1, 1, 5\); expected"),
        (lambda v: {0: torch.zeros(2, 1, 1, 1, 4)}, r"is \(2, 1, 1, 1, 4\); expected"),
        (lambda v: {0: torch.full((3, 1, 1, 1, 4), float("nan"))}, "NaN or infinite .* check the"),
    ],
)
def test_what_is_read_is_checked(made: Callable[[Tensor], Any], says: str, clips: Tensor) -> None:
    backbone = ModuleBackbone("mine", seeded(Pictures), lambda m, v, b: made(v), 0, 4)
    with pytest.raises(ValueError, match=f"what backbone 'mine' reads .*{says}"):
        backbone.features(clips, blocks=(0,), **ASKED)


@pytest.mark.parametrize(
    ("read", "says"),
    [
        (fails, r"raised KeyError: 'states' \(test_backbones_module.py, line \d+\)"),
        (Submodules(["stern"]), r"no submodule 'stern'; it has stem, head, head.0, "),
        (Submodules(["stem"]), r"raised \w*Error"),
        (Submodules(["head.0"], takes="(b t) c h w"), r"returns \(15, 6, 4, 4\), which is not"),
        (
            Submodules(["stem"], takes="(b t) c h w", gives="(b t) (h w) d", grid=(5, 4, 4)),
            r"'stem' \(block 0\) returns \(15, 6, 4, 4\), which is not .* correct gives, grid or",
        ),
    ],
)
def test_a_mistake_in_an_adapter_is_named(read: Any, says: str, clips: Tensor) -> None:
    backbone = ModuleBackbone("mine", seeded(Pictures), read, 0, 6)
    with pytest.raises(ValueError, match=says):
        backbone.features(clips, blocks=(0,), **ASKED)


def test_a_submodule_that_does_not_run_is_named(clips: Tensor) -> None:
    model = seeded(VideoTransformer)
    model.unused = nn.Linear(1, 1)
    backbone = ModuleBackbone(
        "m", model, Submodules(["unused"], takes="b t c h w"), width=1, pixels=Pixels(num_frames=4)
    )
    with pytest.raises(ValueError, match=r"submodule 'unused' \(block 0\) does not run"):
        backbone.features(clips, blocks=(0,), **ASKED)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"model": read_states}, "model of backbone 'm' is of type function; expected a torch.nn"),
        ({"num_blocks": None}, "num_blocks None of backbone 'm' must be given"),
        ({"width": 0}, "width 0 of backbone 'm' must be given, and at least 1"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_arguments_that_are_of_no_use(given: dict[str, Any], says: str) -> None:
    arguments = {"model": nn.Identity(), "num_blocks": 3, "width": 12, **given}
    with pytest.raises(ValueError, match=says):
        ModuleBackbone("m", read=read_states, **arguments)


def test_clips_that_are_too_short_are_named(by_names: ModuleBackbone, clips: Tensor) -> None:
    with pytest.raises(ValueError, match=r"takes 4 frames but clips have 3; raise --data.num-fra"):
        by_names.features(clips[:, :, :3], blocks=(0,), **ASKED)


# --- From a user's file --------------------------------------------------------------------------

ADAPTER = """
from safetensors.torch import load_file
from model_of_mine import Net
from probe_eval.backbone import ModuleBackbone, Submodules

def load(pretrained, device):
    model = Net()
    model.load_state_dict(load_file(f"{pretrained}/model.safetensors"))
    read = Submodules(["stem", "head"], gives="b d t h w")
    return ModuleBackbone("my-model", model, read, width=6)

def forgets(pretrained): pass
def breaks(pretrained, device): return {}["weights"]
def model(pretrained, device): return Net()
def nothing(pretrained, device): return None
"""
MODEL = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv3d(3, 6, 4, 4), nn.Conv3d(6, 6, 1)
"""


@pytest.fixture
def adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter that imports what lies beside it, and a folder of weights."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "model_of_mine", raising=False)
    (tmp_path / "mine.py").write_text(ADAPTER)
    (tmp_path / "model_of_mine.py").write_text(MODEL)
    weights = {"stem.weight": torch.randn(6, 3, 4, 4, 4), "stem.bias": torch.zeros(6)}
    weights |= {"head.weight": torch.randn(6, 6, 1, 1, 1), "head.bias": torch.zeros(6)}
    save_file(weights, tmp_path / "model.safetensors")
    return tmp_path / "mine.py"


def test_an_adapter_of_a_file(adapter: Path, clips: Tensor) -> None:
    backbone = load_backbone(f"{adapter}:load", str(adapter.parent), "cpu")
    assert backbone.name == "my-model"
    features = backbone.features(backbone.encode(clips), blocks=(0, 1), **ASKED)
    assert features[1].shape == (3, 1, 4, 4, 6)
    again = load_backbone(f"{adapter}:load", str(adapter.parent), "cpu")
    assert again.weights_hash == backbone.weights_hash


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("forgets", ValueError, r"called with \(pretrained, device\): .*; define it as def load"),
        ("breaks", ValueError, r"raised KeyError: 'weights' \(mine.py, line 13\); --debug"),
        ("model", ValueError, r"returned Net, a model; tell which blocks .*ModuleBackbone\(name"),
        ("nothing", ValueError, "returned NoneType, without name, num_blocks, .*encode, features"),
        ("lod", ValueError, "has no 'lod'; it has .*load"),
    ],
)
def test_a_function_that_makes_none_is_named(
    adapter: Path, name: str, kind: type, says: str
) -> None:
    with pytest.raises(kind, match=says):
        load_backbone(f"{adapter}:{name}", str(adapter.parent))


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("no/such.py:load", FileNotFoundError, "no file no/such.py to take a backbone from"),
        ("no_such.module:load", ImportError, "no module 'no_such' to take a backbone from"),
        (":load", ValueError, "backbone ':load' has an unknown form; expected 'path/to/file.py:na"),
    ],
)
def test_a_place_that_is_not_there_is_named(name: str, kind: type, says: str) -> None:
    with pytest.raises(kind, match=says):
        load_backbone(name, "folder")


def test_what_a_function_was_given_is_part_of_the_hash() -> None:
    def reads(layer: int) -> Any:
        return lambda model, video, blocks: {0: video[..., :layer]}

    def read(model: Any, video: Any, blocks: Any, layer: int) -> Any:
        return {0: video[..., :layer]}

    model = nn.Linear(2, 2)
    for make in (reads, lambda layer: functools.partial(read, layer=layer)):
        hashes = [ModuleBackbone("x", model, make(n), 0, 2).weights_hash for n in (1, 2, 1)]
        assert hashes[0] == hashes[2] != hashes[1]
