"""Point tracks by the metrics of TAP-Vid.

Axes: b videos, t frames, q queries, one for each track.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe_eval.metrics.functional.sums import Measured, Sums, check_shapes, refuse

RESOLUTION = 256
"""Pixels along width and height to which thresholds refer, whatever the video's own are."""
THRESHOLDS = (1, 2, 4, 8, 16)
"""Distances in pixels below which a position is right."""
QueryMode = Literal["first", "strided"]
QUERY_MODES: dict[str, str] = {
    "first": "masks frames up to and including the query",
    "strided": "masks the query frame",
}
"""How the queries of a data set were chosen -> which frames of a track do not count. A published
notebook for Perception Test names its mode "first", but masks as "strided" does."""


def track_metrics(
    pred: Float[Tensor, "b t q 2"],
    pred_visible: Bool[Tensor, "b t q"],
    target: Float[Tensor, "b t q 2"],
    target_visible: Bool[Tensor, "b t q"],
    query_frames: Int[Tensor, "b q"] | None = None,
    valid: Bool[Tensor, "b t q"] | None = None,
    *,
    query_mode: QueryMode = "first",
    sample_ids: Sequence[str] | None = None,
) -> Measured:
    """Average Jaccard, position accuracy and occlusion accuracy of each video.

    For each threshold, `jaccard_*` is the number of points that are seen, said to be seen and
    nearer than the threshold, over that number plus the points that are said to be seen wrongly
    or too far away, or that are seen and missed; `pts_within_*` is the share of seen points nearer
    than the threshold, whatever is said of their visibility. `average_jaccard` (AJ) and
    `average_pts_within_thresh` are their means over thresholds; `occlusion_accuracy` is the share
    of points whose visibility is right.

    Reference: Doersch et al., TAP-Vid: A Benchmark for Tracking Any Point in a Video (NeurIPS
        2022); From Image to Video, Sec. 3.4 (AJ).

    Args:
        pred: positions xy in [0, 1] of the image.
        pred_visible: which points the tracker says are seen.
        target: true positions; anything where a point is not seen.
        target_visible: which points are seen.
        query_frames: index of each query's frame; None is frame 0.
        valid: which points count; false for all frames of a padded query. None counts all.
        query_mode: one of `QUERY_MODES`.
        sample_ids: names for errors; None names videos by their positions.

    Returns:
        One term for each video, so that a state averages over videos; none where a number has no
        value, as the accuracy of positions of a video without seen points. Higher is better.

    Raises:
        ValueError: if shapes differ, the query mode is unknown, a query is before the first frame
            or after the last, or a position that counts is not finite.
    """
    check_shapes(target.shape, pred=pred)
    check_shapes(target.shape[:-1], pred_visible=pred_visible, target_visible=target_visible)
    scored = scored_frames(target_visible, query_frames, valid, query_mode, sample_ids)
    lost = ~pred.isfinite().all(dim=-1)
    refuse(scored & lost, "predicted position is not finite", sample_ids)
    lost = ~target.isfinite().all(dim=-1)
    refuse(
        scored & lost & target_visible, "true position of a seen point is not finite", sample_ids
    )

    def count(points: Bool[Tensor, "b t q"]) -> Int[Tensor, " b"]:
        return reduce((points & scored).long(), "b t q -> b", "sum")

    seen = count(target_visible)
    distance = (RESOLUTION * (pred.double() - target.double())).square().sum(dim=-1)
    jaccard, within = {}, {}
    for threshold in THRESHOLDS:
        right = target_visible & (distance < threshold**2)
        jaccard[f"jaccard_{threshold}"] = ratios(
            count(right & pred_visible), seen + count(pred_visible & ~right)
        )
        within[f"pts_within_{threshold}"] = ratios(count(right), seen)
    sums = {
        "average_jaccard": averages([*jaccard.values()]),
        "average_pts_within_thresh": averages([*within.values()]),
        "occlusion_accuracy": ratios(count(pred_visible == target_visible), count(scored)),
    }
    return Measured(f"{query_mode}: {QUERY_MODES[query_mode]}", {**sums, **jaccard, **within})


def scored_frames(
    like: Bool[Tensor, "b t q"],
    query_frames: Int[Tensor, "b q"] | None,
    valid: Bool[Tensor, "b t q"] | None,
    query_mode: QueryMode,
    sample_ids: Sequence[str] | None = None,
) -> Bool[Tensor, "b t q"]:
    """Which frames of each track count.

    Args:
        like: a mask of the right shape, on the right device.
        query_frames: index of each query's frame; None is frame 0.
        valid: which entries count; None counts all.
        query_mode: one of `QUERY_MODES`.
        sample_ids: names for errors; None names videos by their positions.

    Raises:
        ValueError: if shapes differ, the query mode is unknown, or a query that counts is before
            the first frame or after the last.
    """
    if query_mode not in QUERY_MODES:
        raise ValueError(f"unknown query mode {query_mode!r}; known: {', '.join(QUERY_MODES)}")
    videos, num_frames, queries = like.shape
    check_shapes((videos, queries), query_frames=query_frames)
    check_shapes(like.shape, valid=valid)
    valid = torch.ones_like(like) if valid is None else valid
    if query_frames is None:
        query_frames = torch.zeros_like(like[:, 0], dtype=torch.long)
    outside = (query_frames < 0) | (query_frames >= num_frames)
    refuse(
        outside & reduce(valid, "b t q -> b q", "any"),
        f"query frame is outside [0, {num_frames}), the frames of the tracks",
        sample_ids,
    )
    frames = rearrange(torch.arange(num_frames, device=like.device), "t -> t 1")
    start = rearrange(query_frames, "b q -> b 1 q")
    return valid & (frames > start if query_mode == "first" else frames != start)


def ratios(parts: Int[Tensor, " b"], wholes: Int[Tensor, " b"]) -> Sums:
    """Quotients with one term for each sample, none where the whole is 0."""
    pairs = list(zip(parts.tolist(), wholes.tolist(), strict=True))
    return Sums(
        [part / whole if whole else 0.0 for part, whole in pairs],
        [int(whole > 0) for _, whole in pairs],
    )


def averages(sums: Sequence[Sums]) -> Sums:
    """Means over numbers that have the same terms."""
    totals = zip(*(part.totals for part in sums), strict=True)
    return Sums([math.fsum(values) / len(sums) for values in totals], sums[0].terms)
