"""Tasks one by one: what is special about each, on examples made by hand."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from probe_datasets import ClipConfig
from probe_datasets.synthetic import SyntheticWorld
from probe_eval.config import ReadoutConfig
from probe_eval.metrics.functional.sums import Measured
from probe_eval.metrics.state import ReadoutState
from probe_eval.tasks import TASKS, load_task
from probe_eval.tasks.base import mean_of_samples, require, sizes
from probe_eval.tasks.classification import study_width
from probe_eval.views import FirstClips
from probe_readouts import READOUTS, Tracks

FRAMES, CLIPS, SIZE = 5, 3, 20  # 8 does not divide the size
Targets = dict[str, Tensor]
Example = dict[str, Any]


class Renamed(FirstClips):
    """A data set with one label of a given name and number of classes."""

    def __init__(self, dataset: SyntheticWorld, label: str, count: int = 6) -> None:
        super().__init__(dataset, len(dataset))
        self.label, self.count = label, count

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """The label."""
        return {self.label: tuple(map(str, range(self.count)))}


class Says(nn.Module):
    """In place of a readout: says what it is told, and keeps what it was asked."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output, self.asked = output, []

    def forward(self, features: Tensor, *arguments: Any) -> Any:
        self.asked.append(arguments)
        return self.output


@pytest.fixture(scope="module")
def world() -> SyntheticWorld:
    clip = ClipConfig(num_frames=FRAMES, size=SIZE)
    return SyntheticWorld("train", clip=clip, num_clips=CLIPS)


@pytest.fixture(scope="module")
def examples(world: SyntheticWorld) -> list[Any]:
    return [world[index] for index in range(CLIPS)]


def stack(name: str, *examples: Any) -> Targets:
    rows = [TASKS[name].targets(example) for example in examples]
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def loss_of(name: str, output: Any, targets: Targets, seed: int = 0) -> Tensor:
    count = len(next(iter(targets.values())))
    generators = [torch.Generator().manual_seed(seed + number) for number in range(count)]
    readout = output if isinstance(output, Says) else Says(output)
    return TASKS[name].loss(
        readout, torch.zeros(count, 2, 2, 2, 8), targets, num_frames=FRAMES, generators=generators
    )


def measured(name: str, output: Any, targets: Targets) -> tuple[Measured, dict[str, float]]:
    """Sums and values."""
    count = len(next(iter(targets.values())))
    ids = [f"clip {number}" for number in range(count)]
    found = TASKS[name].measure(
        Says(output),
        torch.zeros(count, 2, 2, 2, 8),
        targets,
        num_frames=FRAMES,
        sample_ids=ids,
    )
    return found, ReadoutState.of(ids, found).compute()


# --- Classification ------------------------------------------------------------------------------


def test_chance_is_the_share_of_the_most_frequent_class() -> None:
    world = SyntheticWorld("train", clip=ClipConfig(num_frames=1, size=8), num_clips=30)
    assert TASKS["action"].chance(world) == pytest.approx(2 / 30)  # 18 actions in turn
    assert TASKS["shape"].chance(FirstClips(world, 24)) == pytest.approx(18 / 24)


def test_chance_is_one_class_in_all_where_labels_are_not_known(world: SyntheticWorld) -> None:
    class Unread(SyntheticWorld):
        labels = None

    unread = Unread("train", clip=world.shown, num_clips=CLIPS)
    assert TASKS["texture"].chance(unread) == pytest.approx(1 / 6)
    assert TASKS["texture"].chance(FirstClips(unread, 2)) == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("num_classes", "width"), [(1000, 768), (400, 1024), (700, 1024), (174, 768), (18, 768)]
)
def test_the_studys_widths_go_by_the_number_of_classes(num_classes: int, width: int) -> None:
    assert study_width(num_classes) == width


def test_the_label_goes_by_several_names(world: SyntheticWorld) -> None:
    for label in ("class", "place", "species"):
        pictures = Renamed(world, label)
        assert load_task("image-class", pictures) is TASKS["image-class"]
        assert TASKS["image-class"].targets({"labels": {label: 3}})["label"] == 3
    pictures = Renamed(world, "class")
    assert load_task("action", pictures) is TASKS["action"]
    with pytest.raises(ValueError, match=r"no label 'texture' \(its labels: class\); choose"):
        load_task("texture", pictures)
    with pytest.raises(ValueError, match="no label 'class' or 'place' or 'species'"):
        load_task("image-class", world)


# --- Depth ---------------------------------------------------------------------------------------


def test_each_sample_has_its_own_grid(examples: list[Any]) -> None:
    targets = stack("depth", *examples)
    readout = Says(torch.ones(CLIPS, FRAMES, (SIZE // 8) ** 2))
    losses = [loss_of("depth", readout, targets, seed) for seed in (0, 0, 1)]
    first, again, other = (places for places, _ in readout.asked)
    assert first.shape == (CLIPS, FRAMES, (SIZE // 8) ** 2, 2)
    assert torch.equal(first, again)
    assert torch.equal(first[1:], other[:-1])
    assert not torch.equal(first[0], first[1])
    assert losses[0] == losses[1] != losses[2]


def test_depth_is_compared_where_it_was_read(examples: list[Any]) -> None:
    places = torch.stack(torch.meshgrid(*2 * [torch.linspace(-1, 1, SIZE)], indexing="ij"))
    depth = 5 + places[0] - 3 * places[1]

    class Plane(Says):
        def forward(self, features: Tensor, *arguments: Any) -> Any:
            return 5 + arguments[0][..., 0] - 3 * arguments[0][..., 1]

    planes = [{**example, "depth": depth.expand(FRAMES, -1, -1)} for example in examples]
    # 1e-10: rounding of depths of some metres, squared.
    assert loss_of("depth", Plane(None), stack("depth", *planes)) < 1e-10


def test_depth_is_measured_on_every_fourth_pixel(examples: list[Any]) -> None:
    targets = stack("depth", *examples)
    found, numbers = measured("depth", targets["depth"][:, :, ::4, ::4], targets)
    assert numbers == {"abs_rel": 0, "delta_1.25": 1}
    assert found.sums["abs_rel"].terms == [FRAMES * (SIZE // 4) ** 2] * CLIPS
    assert "every 4th pixel" in found.variant


# --- Pose ----------------------------------------------------------------------------------------


def test_the_pose_is_that_of_the_last_camera_from_the_first(examples: list[Any]) -> None:
    example = {**examples[0]}
    first, last = example["poses"][0].double(), example["poses"][-1].double()
    pose = TASKS["pose"].targets(example)["pose"].double()
    point = torch.tensor([0.3, -0.2, 2.0], dtype=torch.float64)
    world = torch.linalg.solve(first[:, :3], point - first[:, 3])
    expected = last[:, :3] @ world + last[:, 3]
    torch.testing.assert_close(pose[:, :3] @ point + pose[:, 3], expected, atol=1e-5, rtol=0)


def test_a_camera_that_stands_still_is_guessed_right(examples: list[Any]) -> None:
    still = {**examples[0], "poses": examples[0]["poses"][:1].expand(FRAMES, 3, 4)}
    targets = stack("pose", still, *examples[1:])
    found, numbers = measured("pose", targets["pose"], targets)
    assert numbers["end_point_error"] == pytest.approx(0, abs=1e-5)
    errors = found.sums["still_end_point_error"].totals
    assert errors[0] == pytest.approx(0, abs=1e-5)
    assert min(errors[1:]) > 1e-3


@pytest.mark.parametrize("frame", [0, 2, FRAMES - 1])
def test_a_pose_counts_where_both_ends_are_known(examples: list[Any], frame: int) -> None:
    lost = {**examples[0], "poses_valid": torch.arange(FRAMES) != frame}
    lost["poses"] = examples[0]["poses"] * lost["poses_valid"][:, None, None]
    assert bool(TASKS["pose"].targets(lost)["valid"]) == (frame == 2)


def test_poses_without_a_unit_are_told(
    world: SyntheticWorld, caplog: pytest.LogCaptureFixture
) -> None:
    class Unscaled(SyntheticWorld):
        metric = False

    clip = ClipConfig(num_frames=2, size=8)
    with caplog.at_level("WARNING", "probe_eval"):
        load_task("pose", world)
        assert not caplog.messages
        for _ in range(2):
            load_task("pose", FirstClips(Unscaled("train", clip=clip, num_clips=2), 1))
    assert ["own unit of length" in message for message in caplog.messages] == [True]


# --- Tracks --------------------------------------------------------------------------------------


def hand_made_points() -> Example:
    """Three tracks: from frame 0, from frame 2 and with an unknown place, and padding."""
    points = repeat(torch.linspace(0.2, 0.6, FRAMES), "T -> q T c", q=3, c=2).clone()
    visible = torch.ones(3, FRAMES, dtype=torch.bool)
    visible[1, [0, 1, 3]] = False
    points[1, [0, 1, 3]] = 0.0
    points[0, 4], visible[0, 4] = 1.5, False  # has left the scene
    return {
        "sample_id": "made by hand",
        "points": points,
        "points_visible": visible,
        "points_valid": torch.tensor([True, True, False]),
        "query_frames": torch.tensor([0, 2, 0]),
    }


def test_places_that_are_not_published_are_outside_the_image() -> None:
    points = TASKS["points"].targets(hand_made_points())["points"]
    assert (points[1, [0, 1, 3]] == -1).all()
    assert (points[0] > 0).all()


def told(targets: Targets) -> Tracks:
    """Tracks that are just as they should be."""
    points = rearrange(targets["points"], "b q T c -> b T q c").clone()
    visible = rearrange(targets["visible"], "b q T -> b T q").float()
    logits = 40 * torch.stack([visible - 0.5, torch.ones_like(visible)], dim=-1)
    return Tracks(points, logits, points)


def test_a_late_query_counts_from_its_frame_on() -> None:
    targets = stack("points", hand_made_points())
    loss = loss_of("points", told(targets), targets)
    # The place in frame 3 is not known; its visibility is.
    for frame, (place, seen) in enumerate([(0, 0), (0, 0), (1, 1), (0, 1), (1, 1)]):
        tracks = told(targets)
        tracks.values[0, frame, 1] += 0.2
        assert (loss_of("points", tracks, targets) > loss + 0.01) == bool(place)
        tracks = told(targets)
        tracks.logits[0, frame, 1, 0] *= -1
        assert (loss_of("points", tracks, targets) > loss + 0.01) == bool(seen)


def test_tracks_are_measured_in_both_modes_beside_the_static_guess() -> None:
    targets = stack("points", hand_made_points())
    found, numbers = measured("points", told(targets), targets)
    assert found.variant.startswith("first: masks frames up to and including the query")
    assert numbers["average_jaccard"] == numbers["average_jaccard_strided"] == 1
    before = told(targets)
    before.logits[0, 0, 1, 0] *= -1  # said to be seen before it is queried
    _, other = measured("points", before, targets)
    assert other["occlusion_accuracy"] == 1 > other["occlusion_accuracy_strided"]
    static = told(targets)
    static.values[:, :, 0], static.values[:, :, 1] = static.values[:, 0, 0], static.values[:, 2, 1]
    static.logits[...] = 9.0
    _, copied = measured("points", static, targets)
    for name in ("average_jaccard", "average_pts_within_thresh", "occlusion_accuracy"):
        assert copied[name] == numbers[f"static_{name}"] < 1


def test_a_query_that_is_not_seen_is_refused() -> None:
    example = hand_made_points()
    example["query_frames"] = torch.tensor([0, 1, 0])
    with pytest.raises(ValueError, match="sample made by hand: a point is not visible"):
        TASKS["points"].targets(example)
    example["points_valid"] = torch.tensor([True, False, False])
    assert not TASKS["points"].targets(example)["valid"][1:].any()


def hand_made_boxes() -> Example:
    """Four objects: followed to the end; absent at first; of no area at first; padding."""
    boxes = repeat(torch.tensor([0.1, 0.2, 0.5, 0.6]), "c -> q T c", q=4, T=FRAMES).clone()
    valid = torch.ones(4, FRAMES, dtype=torch.bool)
    valid[0, 2] = valid[1, 0] = False
    boxes[2, 0, 2] = boxes[2, 0, 0]
    valid[3], boxes[3] = False, 0.0
    return {"sample_id": "made by hand", "boxes": boxes, "boxes_valid": valid}


def test_objects_without_a_box_in_frame_0_are_no_queries() -> None:
    targets = stack("boxes", hand_made_boxes())
    assert targets["valid"][0].sum(dim=1).tolist() == [4, 0, 0, 0]
    boxes = rearrange(targets["boxes"], "b q T c -> b T q c").clone()
    boxes[:, 0], boxes[:, 2] = 0.0, 0.0  # the query, and a frame without its box
    found, numbers = measured("boxes", Tracks(boxes, boxes, boxes), targets)
    assert found.sums["mean_iou"].terms == [3]
    assert numbers == {"mean_iou": 1.0, "static_mean_iou": 1.0}
    readout = Says(Tracks(boxes, boxes, boxes))
    loss_of("boxes", readout, targets)
    queries, query_frames, valid, num_frames = readout.asked[0]
    assert torch.equal(queries, targets["boxes"][:, :, 0])
    assert (query_frames, num_frames, valid.tolist()) == (None, FRAMES, [[True] + 3 * [False]])


@pytest.mark.parametrize("name", ["pose", "points", "boxes"])
def test_one_frame_is_too_few(name: str, world: SyntheticWorld) -> None:
    with pytest.raises(ValueError, match="need at least 2 frames, but there is 1; use longer"):
        TASKS[name].create_readout(world, ReadoutConfig(), feature_dim=8, num_frames=1)


# --- Sizes and helpers ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", READOUTS)
def test_a_width_of_0_is_the_study(world: SyntheticWorld, name: str) -> None:
    kind = READOUTS[name].task
    task = "image-class" if kind == "classification" else kind
    dataset = Renamed(world, "class", READOUTS[name].arguments.get("num_outputs", 1))
    frames = 1 if name in ("imagenet", "places365", "inat2018") else 17
    with torch.device("meta"):
        readout = TASKS[task].create_readout(
            dataset, ReadoutConfig(width=0), feature_dim=1024, num_frames=frames
        )
    assert sum(p.numel() for p in readout.parameters()) == READOUTS[name].parameters


def test_sizes_leave_the_study_alone() -> None:
    assert sizes(ReadoutConfig(width=0, num_heads=4), width=0) == {}
    assert sizes(ReadoutConfig(width=8, num_heads=0), width=8) == {"width": 8}
    assert sizes(ReadoutConfig(width=8, num_heads=2), width=8) == {"width": 8, "num_heads": 2}


def test_samples_weigh_alike_however_much_counts_of_them() -> None:
    losses = torch.tensor([[1.0, 1.0, 1.0], [4.0, float("nan"), 2.0], [9.0, 9.0, 9.0]])
    counts = torch.tensor([[True] * 3, [True, False, True], [False] * 3])
    assert float(mean_of_samples(losses, counts)) == pytest.approx((1 + 3 + 0) / 3)


def test_an_unknown_task_lists_the_known_ones(world: SyntheticWorld) -> None:
    with pytest.raises(ValueError, match=r"unknown task 'acton'; known: image-class, action"):
        load_task("acton", world)


@pytest.mark.parametrize("field", ["depth", "poses", "points", "boxes"])
def test_what_is_not_in_the_examples_is_missed(world: SyntheticWorld, field: str) -> None:
    class Without(SyntheticWorld):
        def __getitem__(self, index: int) -> Any:
            if not index:
                return {"sample_id": "0", "problem": "is damaged"}
            return {key: value for key, value in super().__getitem__(index).items() if key != field}

    require(world, field)
    require(FirstClips(world, 1), field)
    without = Without("train", clip=world.shown, num_clips=CLIPS)
    with pytest.raises(ValueError, match=rf"data set has no '{field}' in its examples; choose"):
        require(without, field)
