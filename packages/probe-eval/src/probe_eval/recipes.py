"""Named runs. A recipe is a function that returns a configuration; flags override its fields."""

import dataclasses
from collections.abc import Callable

from probe_eval.config import DataConfig, OptimConfig, ProbeConfig
from probe_eval.pretrain.config import PretrainTwinsConfig

SHORT = OptimConfig(steps=400, batch_size=32, peak_lr=3e-3, end_lr=1e-6, warmup_steps=30)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DemoConfig:
    """Everything, small: pretraining, four probes with controls, pictures and one page."""

    output: str = "results/demo"
    """Results folder."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Readout seeds of every probe."""
    pretrain: PretrainTwinsConfig = PretrainTwinsConfig()
    """Pretraining; its output goes below the results folder."""
    optim: OptimConfig = SHORT
    """How every readout is trained."""

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError("seeds is empty; give at least one, for instance --seeds 0 1 2")


def moving_shapes_action() -> ProbeConfig:
    """Which way the shapes move (5 classes, chance 0.2); no single frame tells.

    `probe-eval run moving-shapes-action --features.backbone v-walt`, about a minute on 2 cores.
    """
    return ProbeConfig(task="action", data=DataConfig(), optim=SHORT, checkpoint_every=100)


def moving_shapes_shape() -> ProbeConfig:
    """Which shape moves (6 classes, chance 0.167); every frame tells.

    `probe-eval run moving-shapes-shape --features.backbone i-walt`, about a minute on 2 cores.
    """
    return ProbeConfig(task="shape", data=DataConfig(), optim=SHORT, checkpoint_every=100)


RECIPES: dict[str, Callable[[], ProbeConfig]] = {
    "moving-shapes-action": moving_shapes_action,
    "moving-shapes-shape": moving_shapes_shape,
}
"""Name -> recipe."""
