"""What all metrics of readouts share: masks, names in errors, and sums that merge exactly."""

import dataclasses
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from itertools import permutations

import jaxtyping
import pytest
import torch

from probe_eval.metrics.functional.boxes import box_metrics
from probe_eval.metrics.functional.depth import depth_metrics
from probe_eval.metrics.functional.pose import pose_metrics
from probe_eval.metrics.functional.sums import Measured, Sums, masked_sums, refuse
from probe_eval.metrics.functional.tracks import track_metrics
from probe_eval.metrics.state import ReadoutState

SAMPLES = 7
IDS = [f"video/{number}" for number in range(SAMPLES)]
EMPTY = 4  # the sample of each case in which nothing counts


@dataclasses.dataclass(frozen=True)
class Case:
    """A metric with a batch for it."""

    metric: Callable[..., Measured]
    batch: dict[str, torch.Tensor]

    def measure(self, rows: Sequence[int], **replaced: torch.Tensor) -> ReadoutState:
        ids = [IDS[row] for row in rows]
        batch = {name: value[list(rows)] for name, value in {**self.batch, **replaced}.items()}
        return ReadoutState.of(ids, self.metric(**batch, sample_ids=ids))


def make_case(name: str) -> Case:
    """Random predictions near their targets, some of which do not count."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(SAMPLES, *shape, generator=generator)

    def near(target: torch.Tensor, scale: float) -> torch.Tensor:
        return target + scale * (torch.rand(target.shape, generator=generator) - 0.5)

    if name == "pose":
        valid = torch.ones(SAMPLES, dtype=torch.bool)
        target = torch.linalg.qr(rand(3, 3) - 0.5)[0]
        target = torch.cat([target * target.det()[:, None, None], rand(3, 1)], dim=-1)
        batch = {"pred": near(target, 0.5), "target": target}
        metric: Callable[..., Measured] = pose_metrics
    elif name == "depth":
        valid = rand(3, 8, 9) > 0.3
        batch = {"target": 0.5 + 4 * rand(3, 8, 9)}
        batch["pred"] = near(batch["target"], 2.0)
        metric = depth_metrics
    else:
        valid = rand(6, 5) > 0.3
        batch = {"query_frames": (4 * rand(5)).long()}
        if name == "boxes":
            corner = rand(6, 5, 2) / 2
            batch["target"] = torch.cat([corner, corner + 0.1 + rand(6, 5, 2) / 4], dim=-1)
            batch["pred"] = near(batch["target"], 0.1)
            metric = box_metrics
        else:
            batch["target"] = rand(6, 5, 2)
            batch["pred"] = near(batch["target"], 0.05)
            batch["pred_visible"] = rand(6, 5) > 0.4
            batch["target_visible"] = rand(6, 5) > 0.4
            metric = track_metrics
    valid[EMPTY] = False
    return Case(metric, {**batch, "valid": valid})


@pytest.fixture(params=["depth", "pose", "tracks", "boxes"])
def case(request: pytest.FixtureRequest) -> Case:
    return make_case(request.param)


@pytest.fixture
def _unchecked_shapes() -> Iterator[None]:
    """Turn off jaxtyping's checks, which speak before our errors."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_processes_and_batches_change_nothing(case: Case, world: int, batch_size: int) -> None:
    """As a distributed sampler does, the last rank wraps around to the first samples."""
    padded = [row % SAMPLES for row in range(math.ceil(SAMPLES / world) * world)]
    states = []
    for rank in range(world):
        rows = padded[rank::world]
        batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        states.append(reduce(ReadoutState.merge, map(case.measure, batches), ReadoutState()))
    whole = case.measure(range(SAMPLES))
    for order in permutations(states):
        merged = reduce(ReadoutState.merge, order)
        assert merged.metrics == whole.metrics
        assert merged.compute() == whole.compute()  # to the bit


def test_a_set_is_measured_and_not_its_batches(case: Case) -> None:
    """A mean of batches' results differs, because samples have different numbers of terms."""
    whole = case.measure(range(SAMPLES)).compute()
    parts = [case.measure(rows).compute() for rows in ([0, 1, 2, 3, 4, 5], [6])]
    assert all(math.isfinite(value) for value in whole.values())
    name, value = next(iter(whole.items()))
    assert value != pytest.approx(sum(part[name] for part in parts) / 2, rel=1e-3)


@pytest.mark.parametrize("filler", [math.nan, math.inf, 1e9, 0.0])
def test_what_does_not_count_changes_nothing(case: Case, filler: float) -> None:
    hidden = ~case.batch["valid"]
    replaced = {}
    for name in ("pred", "target"):
        replaced[name] = case.batch[name].clone()
        replaced[name][hidden] = filler
    for name in ("pred_visible", "target_visible"):
        if name in case.batch:
            replaced[name] = case.batch[name] ^ hidden
    rows = range(SAMPLES)
    assert case.measure(rows, **replaced) == case.measure(rows)


def test_a_mask_of_all_is_none(case: Case) -> None:
    full = {**case.batch, "valid": torch.ones_like(case.batch["valid"])}
    without = {name: value for name, value in full.items() if name != "valid"}
    assert case.metric(**full) == case.metric(**without)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_broken_prediction_names_its_sample(case: Case, bad: float) -> None:
    pred = case.batch["pred"].clone()
    pred[5:] = bad
    with pytest.raises(ValueError, match=r"sample video/5: predicted .* is not finite"):
        case.measure(range(SAMPLES), pred=pred)
    with pytest.raises(ValueError, match=r"sample 5 of the batch: predicted .* is not finite"):
        case.metric(**{**case.batch, "pred": pred})


@pytest.mark.parametrize("name", ["pose", "tracks", "boxes"])
def test_a_broken_target_names_its_sample(name: str) -> None:
    """Depth has no broken targets: what is not finite is unknown."""
    case = make_case(name)
    target = case.batch["target"].clone()
    target[3] = math.nan
    with pytest.raises(ValueError, match=r"sample video/3: true .* is not finite"):
        case.measure(range(SAMPLES), target=target)


def test_samples_without_terms_are_kept_but_weigh_nothing(case: Case) -> None:
    empty = case.measure([EMPTY])
    assert all(sums.sums == {IDS[EMPTY]: (0.0, 0)} for sums in empty.metrics.values())
    with pytest.raises(ValueError, match="nothing counts in any of the 1 samples"):
        empty.compute()
    rest = case.measure([0, 1, 2])
    assert rest.merge(empty).compute() == rest.compute()


def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(ValueError, match="no sample was measured"):
        ReadoutState().compute()


def test_one_sample_with_two_results_is_an_error(case: Case) -> None:
    first, other = case.measure([0]), case.measure([1])
    renamed = ReadoutState.of(
        [IDS[0]], case.metric(**{name: value[[1]] for name, value in case.batch.items()})
    )
    assert renamed.compute() == other.compute()
    with pytest.raises(ValueError, match="sample video/0 was measured twice with different"):
        first.merge(renamed)


def test_metrics_and_variants_do_not_mix() -> None:
    tracks, boxes = make_case("tracks"), make_case("boxes")
    first = tracks.measure([0])
    strided = ReadoutState.of(IDS, tracks.metric(**tracks.batch, query_mode="strided"))
    with pytest.raises(ValueError, match=r"\(first: masks .*\) cannot be merged .*\(strided"):
        first.merge(strided)
    with pytest.raises(ValueError, match="cannot be merged with mean_iou"):
        first.merge(boxes.measure([0]))


def test_states_pass_between_processes(case: Case) -> None:
    state = case.measure(range(SAMPLES))
    assert state.variant
    assert pickle.loads(pickle.dumps(state)) == state


@pytest.mark.usefixtures("_unchecked_shapes")
def test_shapes_that_would_broadcast_are_refused(case: Case) -> None:
    for name, value in case.batch.items():
        if name != "target":
            with pytest.raises(ValueError, match=rf"{name} has shape .*; expected"):
                case.metric(**{**case.batch, name: value[:1]})


def test_sums_are_exact_whatever_the_threads() -> None:
    """Torch sums a long row in parts, one for each thread, and rounds each of them."""
    values = torch.rand(2, 40_000, generator=torch.Generator().manual_seed(0)).double()
    values[:, ::3] *= -1e12
    counts = values != 0
    expected = Sums([math.fsum(row) for row in values.tolist()], counts.sum(dim=1).tolist())
    assert masked_sums(values, counts) == expected


def test_refusals_count() -> None:
    bad = torch.tensor([[False, False], [True, True], [True, False]])
    with pytest.raises(ValueError, match=r"sample b: is upside down \(2 times\)"):
        refuse(bad, "is upside down", "abc")
    refuse(bad[:1], "is upside down")
    refuse(bad[:0], "is upside down")
