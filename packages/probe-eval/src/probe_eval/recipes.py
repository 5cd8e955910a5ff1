"""Named runs. A recipe is a function that returns a configuration; flags override its fields.

A recipe comes in three sizes. `paper` is the study's run: Table 7's optimiser and steps, the
readout's published sizes, the whole data set, every clip drawn and cropped anew each time it comes
up. Its features are read after block 11 of the 16 of `284m`, two thirds of the depth, at timestep
200: the best of Figure 5 for most tasks (100 was better for points, 0 for boxes). `short` is the
same on a few thousand clips and with a small readout: tens of minutes on a CPU with the tiny twins,
minutes on a GPU. `smoke` shows in a minute that everything fits together; its numbers mean nothing.

The costs below count forwards: clips that go through the backbone.
"""

import dataclasses
import difflib
from collections.abc import Callable
from typing import Literal, cast, get_args

from probe_eval.config import DataConfig, FeatureConfig, OptimConfig, ProbeConfig, ReadoutConfig
from probe_eval.pretrain.config import PretrainTwinsConfig

Preset = Literal["smoke", "short", "paper"]
Recipe = Callable[[Preset], ProbeConfig]

SHORT = OptimConfig(steps=400, batch_size=32, peak_lr=3e-3, end_lr=1e-6, warmup_steps=30)
SMOKE = OptimConfig(steps=20, batch_size=8, peak_lr=3e-3, end_lr=1e-6, warmup_steps=2)
STUDY_BLOCK = 11
"""Two thirds of the 16 blocks of `284m`."""


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


def recipe(name: str, preset: str) -> ProbeConfig:
    """The configuration of a recipe.

    Args:
        name: key of `RECIPES`.
        preset: its size, a `Preset`.

    Raises:
        ValueError: for an unknown name or preset.
    """
    for what, given, known in (("recipe", name, RECIPES), ("preset", preset, get_args(Preset))):
        if given not in known:
            near = difflib.get_close_matches(given, list(known), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown {what} {given!r}; known: {', '.join(known)}{hint}")
    return dataclasses.replace(RECIPES[name](cast(Preset, preset)), recipe=name)


def imagenet(preset: Preset = "short") -> ProbeConfig:
    """ImageNet-1k, top-1 of 1,000 classes; pictures fill a clip, features are averaged over time.

    `probe-eval run imagenet --preset paper --data.root /data/imagenet`

    Cost: 12.8 million forwards of training pictures (10 epochs) and 50,000 of the validation's.
    Published: 0.618 for V-WALT 284M, 0.607 for I-WALT (Table 3).
    """
    optim = OptimConfig(steps=200_182, batch_size=64)
    return of_files("image-class", DataConfig(dataset="imagenet"), optim, preset)


def places365(preset: Preset = "short") -> ProbeConfig:
    """Places365, top-1 of 365 kinds of places; pictures as in the recipe for ImageNet.

    `probe-eval run places365 --preset paper --data.root /data/places365`

    Cost: 5.1 million forwards of training pictures and 36,500 of the validation's.
    Published: 0.464 for V-WALT 284M, 0.461 for I-WALT (Table 3).
    """
    optim = OptimConfig(steps=10_000, batch_size=512)
    return of_files("image-class", DataConfig(dataset="places365"), optim, preset)


def inat2018(preset: Preset = "short") -> ProbeConfig:
    """Species of iNaturalist 2018, top-1 of 8,142; pictures as in the recipe for ImageNet.

    `probe-eval run inat2018 --preset paper --data.root /data/inat2018`

    Cost: 5.1 million forwards of training pictures and 24,426 of the validation's.
    Published: 0.290 for V-WALT 284M, 0.260 for I-WALT (Table 3).
    """
    optim = OptimConfig(steps=10_000, batch_size=512)
    return of_files("image-class", DataConfig(dataset="inat2018"), optim, preset)


def ssv2(preset: Preset = "short") -> ProbeConfig:
    """Something-Something-v2, top-1 of 174 actions; 17 frames at stride 2.

    `probe-eval run ssv2 --preset paper --data.root /data/ssv2`

    Cost: 1.28 million forwards of training clips and 24,777 of the validation's.
    Published: 0.510 for V-WALT 284M, 0.360 for I-WALT (Table 4).
    """
    return of_files("action", DataConfig(dataset="ssv2", stride=2), VIDEO, preset)


def kinetics400(preset: Preset = "short") -> ProbeConfig:
    """Kinetics-400, top-1 of 400 actions; 17 neighbouring frames.

    `probe-eval run kinetics400 --preset paper --data.root /data/kinetics400 --data.on-error skip`

    Cost: 1.28 million forwards of training clips and 19,906 of the validation's.
    Published: 0.552 for V-WALT 284M, 0.527 for I-WALT (Table 4).
    """
    return of_files("action", DataConfig(dataset="kinetics400"), VIDEO, preset)


def kinetics700(preset: Preset = "short") -> ProbeConfig:
    """Kinetics-700 (the list of 2019), top-1 of 700 actions; 17 neighbouring frames.

    `probe-eval run kinetics700 --preset paper --data.root /data/kinetics700 --data.on-error skip`

    Cost: 1.28 million forwards of training clips and 35,000 of the validation's.
    Published: 0.414 for V-WALT 284M, 0.396 for I-WALT (Table 4).
    """
    return of_files("action", DataConfig(dataset="kinetics700"), VIDEO, preset)


def scannet_depth(preset: Preset = "short") -> ProbeConfig:
    """ScanNet, absolute relative error of depth; 17 neighbouring frames, from frame 0 on in tests.

    `probe-eval run scannet-depth --preset paper --data.root /data/scannet`

    Cost: 1.28 million forwards of training clips and 312 of the validation's.
    Published: 0.185 for V-WALT 284M, 0.199 for I-WALT (Table 4; lower is better).
    """
    return of_files("depth", DataConfig(dataset="scannet"), VIDEO, preset)


def realestate10k_pose(preset: Preset = "short") -> ProbeConfig:
    """RealEstate10K, end-point error of the last camera's pose relative to the first.

    `probe-eval run realestate10k-pose --preset paper --data.root /data/re10k --data.options
    scale_table=/data/re10k/scales.json`

    Without a scale table the unit of length is each clip's own, and errors are not in metres.

    Cost: 1.28 million forwards of training clips and one for each clip of the test split.
    Published: 0.826 m for V-WALT 284M, 2.095 m for I-WALT (Table 4; lower is better).
    """
    data = DataConfig(dataset="realestate10k", test_split="test")
    return of_files("pose", data, VIDEO, preset)


def point_tracks(preset: Preset = "short") -> ProbeConfig:
    """Perception Test, average Jaccard of 64 points at stride 4; trained on Kubric MOVi-E.

    `probe-eval run point-tracks --preset paper --data.root /data/movi_e --data.test-root
    /data/perception_test`

    Cost: 1.28 million forwards of training clips and 73 of the validation's.
    Published: 0.756 for V-WALT 284M, 0.449 for I-WALT (Table 4).
    """
    data = DataConfig(dataset="movi_e", test_dataset="perception_test", test_stride=4)
    return of_files("points", data, VIDEO, preset)


def waymo_boxes(preset: Preset = "short") -> ProbeConfig:
    """Waymo Open, mean overlap of up to 25 boxes without frame 0; 17 frames at 5 a second.

    `probe-eval run waymo-boxes --preset paper --data.root /data/waymo`

    Cost: 1.28 million forwards of training clips and 202 of the validation's.
    Published: 0.586 for V-WALT 284M, 0.459 for I-WALT (Table 4).
    """
    return of_files("boxes", DataConfig(dataset="waymo", stride=2), VIDEO, preset)


def synthetic_action(preset: Preset = "short") -> ProbeConfig:
    """The synthetic world, top-1 of 18 actions (chance 0.056); no single frame tells.

    `probe-eval run synthetic-action --preset short --features.backbone v-walt`

    Cost: 3,296 forwards (`paper`: 14,256). Nothing is published on it.
    """
    return rendered("action", "synthetic", preset)


def synthetic_shape(preset: Preset = "short") -> ProbeConfig:
    """The synthetic world, top-1 of 6 shapes (chance 0.167); every frame tells.

    `probe-eval run synthetic-shape --preset short --features.backbone i-walt`

    Cost: 3,296 forwards (`paper`: 14,256). Nothing is published on it.
    """
    return rendered("shape", "synthetic", preset)


def synthetic_texture(preset: Preset = "short") -> ProbeConfig:
    """The synthetic world, top-1 of 6 textures (chance 0.167); every frame tells.

    `probe-eval run synthetic-texture --preset short --features.backbone i-walt`

    Cost: 3,296 forwards (`paper`: 14,256). Nothing is published on it.
    """
    return rendered("texture", "synthetic", preset)


def synthetic_depth(preset: Preset = "short") -> ProbeConfig:
    """The synthetic world, absolute relative error of depth.

    `probe-eval run synthetic-depth --preset short --features.backbone v-walt`

    Cost: 3,296 forwards (`paper`: 14,256). Nothing is published on it.
    """
    return rendered("depth", "synthetic", preset)


def synthetic_pose(preset: Preset = "short") -> ProbeConfig:
    """The synthetic world, end-point error in metres of the last camera relative to the first.

    `probe-eval run synthetic-pose --preset short --features.backbone v-walt`

    Cost: 3,296 forwards (`paper`: 14,256). Nothing is published on it.
    """
    return rendered("pose", "synthetic", preset)


def synthetic_points(preset: Preset = "short") -> ProbeConfig:
    """The synthetic world, average Jaccard of 64 points, a quarter of which may start late.

    `probe-eval run synthetic-points --preset short --features.backbone v-walt`

    Cost: 3,296 forwards (`paper`: 14,256). Nothing is published on it.
    """
    return rendered("points", "synthetic", preset)


def synthetic_boxes(preset: Preset = "short") -> ProbeConfig:
    """The synthetic world, mean overlap of the boxes of up to 16 objects without frame 0.

    `probe-eval run synthetic-boxes --preset short --features.backbone v-walt`

    Cost: 3,296 forwards (`paper`: 14,256). Nothing is published on it.
    """
    return rendered("boxes", "synthetic", preset)


def moving_shapes_action(preset: Preset = "short") -> ProbeConfig:
    """Which way the shapes move (5 classes, chance 0.2); no single frame tells.

    `probe-eval run moving-shapes-action --preset short --features.backbone v-walt`

    Cost: 3,000 forwards, about a minute on 2 cores. Nothing is published on it.
    """
    return rendered("action", "moving_shapes", preset)


def moving_shapes_shape(preset: Preset = "short") -> ProbeConfig:
    """Which shape moves (6 classes, chance 0.167); every frame tells.

    `probe-eval run moving-shapes-shape --preset short --features.backbone i-walt`

    Cost: 3,000 forwards, about a minute on 2 cores. Nothing is published on it.
    """
    return rendered("shape", "moving_shapes", preset)


VIDEO = OptimConfig(steps=40_000, batch_size=32)
"""Table 7, video data sets; the other rows differ in steps and batch alone."""
STUDY_READOUT = ReadoutConfig(width=0, num_heads=0)


def of_files(task: str, data: DataConfig, optim: OptimConfig, preset: Preset) -> ProbeConfig:
    """A row of the study in one of its sizes.

    Args:
        task: its task.
        data: data set, splits and strides.
        optim: its column of Table 7.
        preset: which size.
    """
    features = FeatureConfig(average_time=task == "image-class", dtype="bfloat16")
    if preset == "paper":
        return ProbeConfig(
            task=task,
            data=dataclasses.replace(data, size=256, draws=0, workers=8),
            features=dataclasses.replace(features, block=STUDY_BLOCK, disk_gb=1000.0),
            readout=STUDY_READOUT,
            optim=optim,
        )
    if preset == "short":
        return ProbeConfig(
            task=task,
            data=dataclasses.replace(data, size=128, limit=4000, workers=4),
            features=features,
            readout=ReadoutConfig(width=128),
            optim=dataclasses.replace(SHORT, steps=2000, peak_lr=1e-3, warmup_steps=100),
            checkpoint_every=200,
        )
    return ProbeConfig(
        task=task,
        data=dataclasses.replace(data, limit=32),
        features=features,
        readout=ReadoutConfig(width=32),
        optim=SMOKE,
        checkpoint_every=10,
    )


def rendered(task: str, dataset: str, preset: Preset) -> ProbeConfig:
    """A task on clips that are rendered, in one of its sizes; they have no chance in them.

    Args:
        task: its task.
        dataset: which clips.
        preset: which size.
    """
    shapes = dataset == "moving_shapes"
    data = DataConfig(dataset=dataset, test_split="validation" if shapes else "test")
    if preset == "paper":
        return ProbeConfig(
            task=task,
            data=dataclasses.replace(data, size=128, workers=8),
            features=FeatureConfig(block=STUDY_BLOCK, dtype="bfloat16", disk_gb=200.0),
            readout=STUDY_READOUT,
            optim=VIDEO,
        )
    if preset == "short":
        return ProbeConfig(
            task=task,
            data=data if shapes else dataclasses.replace(data, size=64, limit=2000),
            optim=SHORT if shapes else dataclasses.replace(SHORT, steps=1000, peak_lr=1e-3),
            checkpoint_every=100,
        )
    return ProbeConfig(
        task=task,
        data=dataclasses.replace(data, limit=72),
        readout=ReadoutConfig(width=32),
        optim=SMOKE,
        checkpoint_every=10,
    )


RECIPES: dict[str, Recipe] = {
    "imagenet": imagenet,
    "places365": places365,
    "inat2018": inat2018,
    "ssv2": ssv2,
    "kinetics400": kinetics400,
    "kinetics700": kinetics700,
    "scannet-depth": scannet_depth,
    "realestate10k-pose": realestate10k_pose,
    "point-tracks": point_tracks,
    "waymo-boxes": waymo_boxes,
    "synthetic-action": synthetic_action,
    "synthetic-shape": synthetic_shape,
    "synthetic-texture": synthetic_texture,
    "synthetic-depth": synthetic_depth,
    "synthetic-pose": synthetic_pose,
    "synthetic-points": synthetic_points,
    "synthetic-boxes": synthetic_boxes,
    "moving-shapes-action": moving_shapes_action,
    "moving-shapes-shape": moving_shapes_shape,
}
"""Name -> recipe."""
