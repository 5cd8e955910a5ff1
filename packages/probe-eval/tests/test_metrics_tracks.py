"""Track metrics against published numbers and loops over points."""

from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch

from probe_eval.metrics.functional.tracks import QUERY_MODES, QueryMode, track_metrics
from probe_eval.metrics.state import ReadoutState

GOLDEN = Path(__file__).parent / "golden" / "tapvid.npz"
THRESHOLDS = (1, 2, 4, 8, 16)


@pytest.fixture
def _unchecked_shapes() -> Iterator[None]:
    """Turn off jaxtyping's checks, which speak before our errors."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def compute(*args: torch.Tensor, query_mode: QueryMode = "first") -> dict[str, float]:
    measured = track_metrics(*args, query_mode=query_mode)
    return ReadoutState.of([str(i) for i in range(len(args[0]))], measured).compute()


def random_batch(seed: int, shape: tuple[int, int, int] = (4, 9, 5)) -> dict[str, np.ndarray]:
    """Videos, frames and tracks."""
    rng = np.random.default_rng(seed)
    target = rng.random((*shape, 2))
    return {
        "pred": target + rng.normal(0, 0.02, size=target.shape),
        "pred_visible": rng.random(shape) < 0.6,
        "target": target,
        "target_visible": rng.random(shape) < 0.6,
        "query_frames": rng.integers(0, shape[1], size=(shape[0], shape[2])),
        "valid": rng.random(shape) < 0.8,
    }


def reference(batch: dict[str, np.ndarray], query_mode: str) -> dict[str, list[float]]:
    """Doersch et al. 2022 in sets of points, video by video."""
    results: dict[str, list[float]] = {}
    videos, frames, queries = batch["valid"].shape
    for v in range(videos):
        scored = set()
        for q in range(queries):
            start = batch["query_frames"][v, q]
            for t in range(frames):
                after = t > start if query_mode == "first" else t != start
                if after and batch["valid"][v, t, q]:
                    scored.add((t, q))
        seen = {at for at in scored if batch["target_visible"][v][at]}
        said = {at for at in scored if batch["pred_visible"][v][at]}
        jaccards, shares = [], []
        for threshold in THRESHOLDS:
            near = {
                at
                for at in scored
                if np.hypot(*(256 * (batch["pred"][v][at] - batch["target"][v][at]))) < threshold
            }
            true_positives = len(seen & said & near)
            false_negatives = len(seen) - true_positives
            false_positives = len(said) - true_positives
            union = true_positives + false_negatives + false_positives
            jaccards.append(true_positives / union if union else np.nan)
            shares.append(len(seen & near) / len(seen) if seen else np.nan)
            results.setdefault(f"jaccard_{threshold}", []).append(jaccards[-1])
            results.setdefault(f"pts_within_{threshold}", []).append(shares[-1])
        results.setdefault("average_jaccard", []).append(sum(jaccards) / 5)
        results.setdefault("average_pts_within_thresh", []).append(sum(shares) / 5)
        agreed = len(seen & said) + len(scored - seen - said)
        share = agreed / len(scored) if scored else np.nan
        results.setdefault("occlusion_accuracy", []).append(share)
    return results


@pytest.mark.parametrize("query_mode", QUERY_MODES)
def test_published_numbers(query_mode: QueryMode) -> None:
    with np.load(GOLDEN, allow_pickle=False) as golden:
        pixels = {
            name: torch.tensor(golden[name]).transpose(1, 2)
            for name in ("gt_tracks", "gt_occluded", "pred_tracks", "pred_occluded")
        }
        query_frames = torch.tensor(golden["query_frames"])
        prefix = f"{query_mode}_"
        expected = {k.removeprefix(prefix): golden[k] for k in golden if k.startswith(prefix)}
    assert (query_frames > 0).any()  # late onset
    measured = track_metrics(
        pixels["pred_tracks"] / 256,
        ~pixels["pred_occluded"],
        pixels["gt_tracks"] / 256,
        ~pixels["gt_occluded"],
        query_frames,
        query_mode=query_mode,
    )
    assert measured.sums.keys() == expected.keys()
    assert len(expected) == 13
    for name, sums in measured.sums.items():
        # Counts are equal, so that only the division rounds.
        np.testing.assert_allclose(sums.totals, expected[name], rtol=0, atol=1e-12)
        assert sums.terms == [1] * 6


@pytest.mark.parametrize("query_mode", QUERY_MODES)
@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_loop_over_points(query_mode: QueryMode, seed: int) -> None:
    batch = random_batch(seed)
    tensors = {name: torch.tensor(value) for name, value in batch.items()}
    measured = track_metrics(**tensors, query_mode=query_mode)
    expected = reference(batch, query_mode)
    assert measured.sums.keys() == expected.keys()
    for name, sums in measured.sums.items():
        np.testing.assert_allclose(sums.totals, expected[name], rtol=0, atol=1e-12)
    whole = ReadoutState.of("abcd", measured).compute()
    assert whole["average_jaccard"] == pytest.approx(np.mean(expected["average_jaccard"]))


@pytest.mark.parametrize("seed", range(16))
def test_random_shapes_masks_and_late_queries(seed: int) -> None:
    """Small enough that some videos have no seen point, or nothing that counts."""
    shape = tuple(int(size) for size in np.random.default_rng(seed).integers(1, (4, 5, 3)))
    batch = random_batch(seed, shape)
    tensors = {name: torch.tensor(value) for name, value in batch.items()}
    for query_mode in QUERY_MODES:
        measured = track_metrics(**tensors, query_mode=query_mode)
        for name, values in reference(batch, query_mode).items():
            sums = measured.sums[name]
            assert sums.terms == [int(not np.isnan(value)) for value in values], name
            np.testing.assert_allclose(sums.totals, np.nan_to_num(values), rtol=0, atol=1e-12)


def test_variants_say_what_they_mask() -> None:
    tensors = {name: torch.tensor(value) for name, value in random_batch(0).items()}
    variants = [track_metrics(**tensors, query_mode=mode).variant for mode in QUERY_MODES]
    assert variants == [
        "first: masks frames up to and including the query",
        "strided: masks the query frame",
    ]


def test_masked_frames_change_nothing() -> None:
    batch = {name: torch.tensor(value) for name, value in random_batch(0).items()}
    frames = torch.arange(9)[None, :, None]
    start = batch["query_frames"][:, None]
    for query_mode, masked in (("first", frames <= start), ("strided", frames == start)):
        changed = {name: batch[name].clone() for name in ("pred", "target")}
        for values in changed.values():
            values[masked] = torch.nan
        flipped = {name: batch[name] ^ masked for name in ("pred_visible", "target_visible")}
        found = track_metrics(**{**batch, **changed, **flipped}, query_mode=query_mode)
        assert found == track_metrics(**batch, query_mode=query_mode)


def test_a_query_at_frame_0_is_the_default() -> None:
    batch = {name: torch.tensor(value) for name, value in random_batch(0).items()}
    batch["query_frames"].zero_()
    found = track_metrics(**batch)
    del batch["query_frames"]
    assert track_metrics(**batch) == found


def test_perfect_and_wrong_tracks() -> None:
    target = torch.rand(2, 6, 3, 2, generator=torch.Generator().manual_seed(0))
    seen = torch.rand(2, 6, 3, generator=torch.Generator().manual_seed(1)) < 0.7
    assert set(compute(target, seen, target, seen).values()) == {1.0}
    wrong = compute(target + 0.5, ~seen, target, seen)
    assert set(wrong.values()) == {0.0}
    blind = compute(target, torch.zeros_like(seen), target, seen)
    assert blind["average_jaccard"] == 0
    assert blind["average_pts_within_thresh"] == 1


def test_a_distance_of_the_threshold_is_too_far() -> None:
    seen = torch.ones(1, 2, 1, dtype=torch.bool)
    target = torch.full((1, 2, 1, 2), 0.25, dtype=torch.float64)
    for offset, within in ((4.0, 2 / 5), (3.999, 3 / 5), (0.0, 1.0), (16.0, 0.0)):
        pred = target + torch.tensor([offset / 256, 0.0])
        found = compute(pred, seen, target, seen)
        assert found["average_pts_within_thresh"] == pytest.approx(within)
        # Each point that is too far is one false positive and one miss.
        assert found["average_jaccard"] == pytest.approx(within)


def test_videos_without_seen_points_have_no_accuracy_of_positions() -> None:
    """The formulas give 0 / 0 there; what remains is measured."""
    target = torch.zeros(2, 4, 1, 2)
    seen = torch.zeros(2, 4, 1, dtype=torch.bool)
    seen[1] = True
    said = seen.clone()
    sums = track_metrics(target, said, target, seen).sums
    assert sums["occlusion_accuracy"] == ([1.0, 1.0], [1, 1])
    assert sums["average_pts_within_thresh"] == ([0.0, 1.0], [0, 1])
    assert sums["average_jaccard"] == ([0.0, 1.0], [0, 1])
    said[0] = True  # now there are false positives, so that the index is 0
    assert track_metrics(target, said, target, seen).sums["average_jaccard"].terms == [1, 1]


def test_positions_of_unseen_points_are_not_looked_at() -> None:
    target = torch.rand(1, 5, 2, 2, generator=torch.Generator().manual_seed(0))
    seen = torch.tensor([True, False]).expand(1, 5, 2)
    hidden = target.clone()
    hidden[~seen] = torch.nan
    assert track_metrics(target, seen, hidden, seen) == track_metrics(target, seen, target, seen)


@pytest.mark.parametrize("frame", [-1, 9])
def test_queries_outside_the_video_are_refused_unless_padded(frame: int) -> None:
    batch = {name: torch.tensor(value) for name, value in random_batch(0).items()}
    batch["query_frames"][2, 3] = frame
    with pytest.raises(ValueError, match=r"sample 2 of the batch: query frame .*\[0, 9\)"):
        track_metrics(**batch)
    batch["valid"][2, :, 3] = False
    track_metrics(**batch)


@pytest.mark.usefixtures("_unchecked_shapes")
def test_an_unknown_query_mode_is_refused() -> None:
    batch = {name: torch.tensor(value) for name, value in random_batch(0).items()}
    with pytest.raises(ValueError, match="unknown query mode 'last'; known: first, strided"):
        track_metrics(**batch, query_mode="last")
