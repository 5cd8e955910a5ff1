"""A backbone that is spread over processes has the features of the whole one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from probe_eval.backbone import ModuleBackbone, Submodules, load_backbone
from probe_eval.sharding import ShardedBackbone, in_step, load_sharded

ASKED = {"timestep": 300, "seed": 5}
# Block and clips of each forward, by rank: of unlike depth, and not equally many.
FORWARDS: tuple[list[tuple[int, list[int]]], ...] = (
    [(1, [0, 1]), (4, [2]), (2, [1])],
    [(4, [2, 0])],
    [],
)


def clips_of_test() -> torch.Tensor:
    return torch.rand(3, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def process(twins: Path, folder: Path) -> None:
    """What one process does: its forwards, with what it has of the weights."""
    torch.set_num_threads(1)  # threads do not survive a fork
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    rank, clips = accelerator.process_index, clips_of_test()
    backbone: Any = load_sharded("v-walt", str(twins), accelerator)
    made = {}
    with in_step(backbone, lambda: clips[0]):
        for block, chosen in FORWARDS[rank]:
            found = backbone.features(
                backbone.encode(clips[chosen]),
                blocks=(block,),
                sample_ids=[str(clip) for clip in chosen],
                **ASKED,
            )
            assert list(found) == [block]
            made |= {f"{block}-{clip}": found[block][at].clone() for at, clip in enumerate(chosen)}
    layers = backbone.backbone.denoiser.blocks
    held = sum(part.to_local().numel() for part in layers.parameters())
    made["held"] = torch.tensor([held, sum(part.numel() for part in layers.parameters())])
    save_file(made, folder / f"{rank}.safetensors")
    accelerator.end_training()


def test_features_are_those_of_the_whole_backbone(twins: Path, tmp_path: Path) -> None:
    world = len(FORWARDS)
    debug_launcher(process, (twins, tmp_path), num_processes=world)
    whole, clips = load_backbone("v-walt", str(twins)), clips_of_test()
    shares = 0
    for rank in range(world):
        made = load_file(tmp_path / f"{rank}.safetensors")
        held, total = made.pop("held").tolist()
        # Held after the last forward too; a part is as large as the largest.
        assert held < total * (1 / world + 0.2)
        shares += held
        assert len(made) == sum(len(chosen) for _, chosen in FORWARDS[rank])
        for name, found in made.items():
            block, clip = map(int, name.split("-"))
            alone = whole.features(
                whole.encode(clips[clip : clip + 1]),
                blocks=(block,),
                sample_ids=[str(clip)],
                **ASKED,
            )[block][0]
            # The default tolerance: a batch of two is summed in another order than one clip.
            torch.testing.assert_close(found, alone)
    assert shares == total


def test_one_process_keeps_it_whole(twins: Path, accelerator: Accelerator) -> None:
    backbone = load_sharded("v-walt", str(twins), accelerator)
    assert not isinstance(backbone, ShardedBackbone)
    with in_step(backbone, lambda: pytest.fail("nobody runs along")):
        pass


@pytest.fixture
def backbone() -> Callable[[torch.nn.Module], ModuleBackbone]:
    """Function that makes a backbone of a model."""
    return lambda model: ModuleBackbone("mine", model, Submodules(["0"]), width=1)


def test_layers_of_a_users_model_are_its_longest_list(backbone: Callable) -> None:
    layers = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))
    model = torch.nn.ModuleDict({"heads": torch.nn.ModuleList([torch.nn.Linear(2, 2)])})
    model["layers"] = layers
    assert backbone(model).shardable() == list(layers)


def test_a_backbone_without_layers_is_named(backbone: Callable, accelerator: Accelerator) -> None:
    with pytest.raises(ValueError, match=r"'mine' does not say which .* give it shardable\(\)"):
        ShardedBackbone(backbone(torch.nn.Sequential(torch.nn.Linear(2, 2))), accelerator)
