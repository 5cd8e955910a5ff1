"""The registry of backbones and what is checked before anything is computed."""

from pathlib import Path

import pytest

from probe_eval.backbone import BACKBONES, FrozenBackbone, check_features, load_backbone


@pytest.mark.parametrize("name", BACKBONES)
def test_every_name_loads(twins: Path, name: str) -> None:
    backbone = load_backbone(name, str(twins))
    assert isinstance(backbone, FrozenBackbone)
    assert backbone.name == name


def test_an_unknown_name_lists_the_known_ones(twins: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown backbone 'w-walt'; known: .*v-walt"):
        load_backbone("w-walt", str(twins))


@pytest.fixture(scope="module")
def backbone(twins: Path) -> FrozenBackbone:
    return load_backbone("v-walt", str(twins))


@pytest.mark.parametrize(("block", "timestep"), [(0, 0), (4, 999), (2, 200)])
def test_what_is_in_range_passes(backbone: FrozenBackbone, block: int, timestep: int) -> None:
    check_features(backbone, block=block, timestep=timestep)


@pytest.mark.parametrize("block", [-1, 5, 99])
def test_a_block_out_of_range_is_named(backbone: FrozenBackbone, block: int) -> None:
    with pytest.raises(ValueError, match=rf"block {block} must be 0 .*to 4.*'v-walt'"):
        check_features(backbone, block=block, timestep=0)


@pytest.mark.parametrize("timestep", [-1, 1000])
def test_a_timestep_out_of_range_is_named(backbone: FrozenBackbone, timestep: int) -> None:
    with pytest.raises(ValueError, match=rf"timestep {timestep} must be 0 .*to 999"):
        check_features(backbone, block=0, timestep=timestep)


@pytest.mark.parametrize("timestep", [0, 200, 999])
def test_noise_levels_keep_the_variance(backbone: FrozenBackbone, timestep: int) -> None:
    level = backbone.noise_level(timestep)
    assert level["alpha"] ** 2 + level["sigma"] ** 2 == pytest.approx(1)
