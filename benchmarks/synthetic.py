"""The synthetic world: clips a second, and how far simple predictors come on each of its tasks.

`nice python benchmarks/synthetic.py --output FILE.json` takes about ten minutes of one core.

What is predicted from what, each trained on clips of one split and tested on those of another:
- histogram: linear, from the shares of 64 colours in all frames;
- frame: linear and nearest neighbours, from the principal components of the middle frame; linear
  from its edges (how much of each orientation there is in each part of it); and a small network;
- motion: a small network, from the optical flow between neighbouring frames.

The networks say whether a label can be learned at all from one frame, and from motion.

Axes: n clips, T frames, H W pixels, d features, k classes.
"""

import argparse
import json
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn
from torch.nn import functional
from turns import machine

from probe_datasets.clips import ClipConfig
from probe_datasets.synthetic import SyntheticWorld, WorldConfig
from probe_eval.metrics.functional.boxes import box_metrics
from probe_eval.metrics.functional.depth import depth_metrics
from probe_eval.metrics.functional.pose import pose_metrics
from probe_eval.metrics.functional.sums import Measured
from probe_eval.metrics.functional.tracks import track_metrics

LABELS = ("action", "shape", "texture")
SIDE = 32
"""Pixels of each side of what classifiers see."""
COMPONENTS, NEIGHBOURS = 96, 10
EVERY = 4
"""Depth is judged at every so many frames, rows and columns."""


def measure_speed(num_clips: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Clips a second: the mean over clips of the best of some rounds, all settings in turns."""
    settings = [(size, shadows) for size in (64, 128) for shadows in (False, True)]
    worlds = {
        (size, shadows): SyntheticWorld(
            clip=ClipConfig(size=size), config=WorldConfig(shadows=shadows)
        )
        for size, shadows in settings
    }
    best = dict.fromkeys(settings, 0.0)
    for number in range(num_clips):
        seconds = dict.fromkeys(settings, math.inf)
        for _ in range(rounds):
            for setting, world in worlds.items():
                started = time.process_time()
                world[number * 19]
                seconds[setting] = min(seconds[setting], time.process_time() - started)
        for setting in settings:
            best[setting] += seconds[setting] / num_clips
    for (size, shadows), mean in best.items():
        yield {
            "size": size,
            "shadows": shadows,
            "milliseconds": round(1e3 * mean, 2),
            "clips/s": round(1 / mean, 1),
        }


def gather(split: str, num_clips: int) -> dict[str, Tensor]:
    """What the predictors need of random clips of a split."""
    world = SyntheticWorld(split)
    order = torch.randperm(len(world), generator=torch.Generator().manual_seed(0))
    parts: dict[str, list[Tensor]] = {}
    for index in order[:num_clips].tolist():
        clip = world[index]
        poses = functional.pad(clip["poses"].double(), (0, 0, 0, 1))
        poses[:, 3, 3] = 1
        video = rearrange(clip["video"], "c T H W -> T c H W")
        small = functional.adaptive_avg_pool2d(video, SIDE)
        kept = {
            "frame": bytes_of(video[len(video) // 2]),
            "small": bytes_of(small),
            "histogram": histogram(clip["video"]),
            "depth": clip["depth"][::EVERY, ::EVERY, ::EVERY].clone(),
            "pose": (poses[-1] @ torch.linalg.inv(poses[0]))[:3].float(),
            "static masks": static_masks(clip["segments"]),
            **{name: torch.tensor(clip["labels"][name]) for name in LABELS},
        }
        names = ("points", "points_visible", "query_frames", "boxes", "boxes_valid")
        for name, value in {**kept, **{name: clip[name] for name in names}}.items():
            parts.setdefault(name, []).append(value)
    return {name: torch.stack(values) for name, values in parts.items()}


def bytes_of(pixels: Tensor) -> Tensor:
    """Pixels of -1 to 1 as bytes."""
    return ((pixels + 1) * 127.5).round().byte()


def histogram(video: Tensor) -> Tensor:
    """Share of each of 64 colours in a video `c T H W`."""
    red, green, blue = ((video + 1) * 1.9999).long()
    counts = torch.bincount((16 * red + 4 * green + blue).flatten(), minlength=64)
    return counts / counts.sum()


def static_masks(segments: Tensor) -> Tensor:
    """Sum and number of overlaps of the first frame's masks with those of the others."""
    total, terms = 0.0, 0
    for k in segments[0].unique().tolist():
        if k:
            masks = segments == k
            both = reduce(masks[1:] & masks[0], "T H W -> T", "sum")
            either = reduce(masks[1:] | masks[0], "T H W -> T", "sum")
            total += float((both / either).sum())
            terms += len(both)
    return torch.tensor([total, terms])


def edges(frames: Tensor) -> Tensor:
    """Strength of eight orientations of edges in sixteen parts of frames `n c H W`."""
    grey = frames.mean(dim=1)
    x = grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]
    y = grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1]
    orientation = ((torch.atan2(y, x) / torch.pi % 1) * 8).long().clamp(max=7)
    strength = functional.one_hot(orientation, 8) * torch.hypot(x, y)[..., None]
    pooled = functional.adaptive_avg_pool2d(rearrange(strength, "n H W d -> n d H W"), 4)
    return rearrange(pooled, "n d H W -> n (d H W)").sqrt()


def components(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Principal components `n d` of the training frames, scaled alike."""
    train, test = (rearrange(v, "n c H W -> n (c H W)") for v in (train, test))
    mean = train.mean(dim=0)
    _, values, basis = torch.svd_lowrank(train - mean, COMPONENTS, niter=4)
    scale = basis / values * len(train) ** 0.5
    return (train - mean) @ scale, (test - mean) @ scale


def ridge(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """Scores `n k` of linear regression on one-hot labels, whose penalty is the best of some.

    The penalty is chosen on a fifth of the training clips.
    """
    mean, std = train.mean(dim=0), train.std(dim=0) + 1e-6
    train, test = (
        functional.pad((v - mean) / std, (0, 1), value=1).double() for v in (train, test)
    )
    targets = functional.one_hot(labels).double()

    def solve(rows: slice, penalty: float) -> Tensor:
        part = train[rows]
        gram = part.T @ part + penalty * torch.eye(part.shape[1], dtype=torch.float64)
        return torch.linalg.solve(gram, part.T @ targets[rows])

    cut = len(train) * 4 // 5
    tried = {
        penalty: accuracy(train[cut:] @ solve(slice(cut), penalty), labels[cut:])
        for penalty in (1.0, 10.0, 100.0, 1000.0, 10000.0)
    }
    return test @ solve(slice(None), max(tried, key=tried.__getitem__))


def neighbours(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """Votes `n k` of the nearest training clips."""
    nearest = torch.cdist(test, train).topk(NEIGHBOURS, largest=False).indices
    return functional.one_hot(labels[nearest], int(labels.max()) + 1).sum(dim=1).double()


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Share of clips whose highest score `n k` is that of their class."""
    return float((scores.argmax(dim=1) == labels).double().mean())


def direction_accuracy(scores: Tensor, labels: Tensor) -> float:
    """Share of clips whose action scores higher than its opposite; where equal, a half."""
    ahead = (scores.gather(1, labels[:, None]) - scores.gather(1, (labels ^ 1)[:, None])).sign()
    return float((ahead / 2 + 0.5).double().mean())


def flow(small: Tensor) -> Tensor:
    """Optical flow and its certainty, `n 3 T H W`, of videos of bytes `n T c H W`.

    Reference: B. Lucas and T. Kanade, An Iterative Image Registration Technique (1981).
    """
    num = len(small)
    video = rearrange(small.float() / 127.5 - 1, "n T c H W -> (n T) c H W")
    video = rearrange(blurred(video, 3), "(n T) c H W -> n T c H W", n=num)
    change, mean = video[:, 1:] - video[:, :-1], (video[:, 1:] + video[:, :-1]) / 2
    x, y = torch.zeros_like(mean), torch.zeros_like(mean)
    x[..., 1:-1] = (mean[..., 2:] - mean[..., :-2]) / 2
    y[..., 1:-1, :] = (mean[..., 2:, :] - mean[..., :-2, :]) / 2
    products = torch.stack([(a * b).sum(dim=2) for a, b in pairs(x, y, change)], dim=2)
    products = blurred(rearrange(products, "n T c H W -> (n T) c H W"), 5)
    xx, yy, xy, xt, yt = (products + torch.tensor([2e-3, 2e-3, 0, 0, 0])[:, None, None]).unbind(1)
    square = xx * yy - xy * xy
    certainty = (100 * square / (xx + yy)).clamp(max=3)
    u = ((xy * yt - yy * xt) / square).clamp(-3, 3) * certainty
    v = ((xy * xt - xx * yt) / square).clamp(-3, 3) * certainty
    pooled = functional.avg_pool2d(torch.stack([u, v, certainty], dim=1), 2)
    pooled[:, :2] /= pooled[:, 2:] + 1e-3
    return rearrange(pooled, "(n T) c H W -> n c T H W", n=num)


def pairs(x: Tensor, y: Tensor, change: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """Factors of the entries of the equations of optical flow."""
    return (x, x), (y, y), (x, y), (x, change), (y, change)


def blurred(frames: Tensor, side: int) -> Tensor:
    """Means over squares round each pixel."""
    return functional.avg_pool2d(frames, side, 1, side // 2, count_include_pad=False)


def convolutions(kind: type[nn.Module], norm: type[nn.Module], steps: list[tuple]) -> nn.Sequential:
    """Convolutions of side 3, each of (channels before, channels after, stride)."""
    layers: list[nn.Module] = []
    for before, after, stride in steps:
        layers += [kind(before, after, 3, stride=stride, padding=1), norm(after), nn.ReLU()]
    return nn.Sequential(*layers)


def fit(
    body: nn.Module, width: int, train: Tensor, labels: list[Tensor], test: Tensor, epochs: int
) -> list[Tensor]:
    """Scores `n k` of every label for test inputs, of a network that learns all labels at once."""
    sizes = [int(label.max()) + 1 for label in labels]
    net = nn.Sequential(body, nn.Flatten(), nn.Linear(width, sum(sizes)))
    optimizer = torch.optim.AdamW(net.parameters(), lr=6e-3, weight_decay=0.05)
    steps = epochs * (len(train) // 50)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(train))
        for batch in order[: len(train) // 50 * 50].split(50):
            scores = net(train[batch].float()).split(sizes, dim=1)
            losses = [
                functional.cross_entropy(score, label[batch])
                for score, label in zip(scores, labels, strict=True)
            ]
            optimizer.zero_grad()
            sum(losses).backward()
            optimizer.step()
            schedule.step()
    net.eval()
    with torch.no_grad():
        scores = torch.cat([net(part.float()) for part in test.split(100)])
    return list(scores.split(sizes, dim=1))


def motion_network(train: Tensor, labels: Tensor, test: Tensor, epochs: int) -> Tensor:
    """Scores `n k` of a small network of space and time on flow `n 3 T H W`."""
    torch.manual_seed(0)
    steps = [(3, 32, (1, 2, 2)), (32, 48, (2, 2, 2)), (48, 64, (2, 1, 1))]
    body = convolutions(nn.Conv3d, nn.BatchNorm3d, steps)
    body.append(nn.AdaptiveAvgPool3d(1))
    return fit(body, 64, train, [labels], test, epochs)[0]


def frame_network(train: Tensor, labels: list[Tensor], test: Tensor, epochs: int) -> list[Tensor]:
    """Scores `n k` of a small network on frames of bytes `n c H W`, for every label."""
    torch.manual_seed(0)
    steps = [(3, 24, 2), (24, 48, 2), (48, 64, 2), (64, 96, 1)]
    body = convolutions(nn.Conv2d, nn.BatchNorm2d, steps)
    body.append(nn.AdaptiveMaxPool2d(1))
    return fit(nn.Sequential(nn.BatchNorm2d(3), body), 96, train, labels, test, epochs)


def score_classes(
    train: dict[str, Tensor], test: dict[str, Tensor], epochs: int
) -> Iterator[dict[str, Any]]:
    """Accuracy of what sees colours or one frame, on every label."""
    middle = train["small"].shape[1] // 2
    frames = [part["small"][:, middle].float() / 127.5 - 1 for part in (train, test)]
    parts = components(*frames)
    inputs = {
        "histogram, linear": (ridge, train["histogram"], test["histogram"]),
        "frame, linear": (ridge, *parts),
        "frame, neighbours": (neighbours, *parts),
        "frame's edges, linear": (ridge, *(edges(part) for part in frames)),
    }
    scores = {
        name: [predict(known, train[label], new) for label in LABELS]
        for name, (predict, known, new) in inputs.items()
    }
    labels = [train[label] for label in LABELS]
    scores["frame, small network"] = frame_network(train["frame"], labels, test["frame"], epochs)
    for name, of_labels in scores.items():
        found = dict(zip(LABELS, of_labels, strict=True))
        yield {
            "predictor": name,
            **{label: round(accuracy(found[label], test[label]), 3) for label in LABELS},
            "direction": round(direction_accuracy(found["action"], test["action"]), 3),
        }


def score_motion(
    train: dict[str, Tensor], test: dict[str, Tensor], epochs: int, names: tuple[str, ...]
) -> dict[str, Any]:
    """Accuracy of what sees motion, on the action; by pair of actions too."""
    known, new = (
        torch.cat([flow(part).half() for part in clips["small"].split(50)])
        for clips in (train, test)
    )
    labels = test["action"]
    scores = motion_network(known, train["action"], new, epochs)
    by_pair = {}
    for k in range(0, len(names), 2):
        of_pair = (labels | 1) == k + 1
        by_pair[f"{names[k]}, {names[k + 1]}"] = {
            "action": round(accuracy(scores[of_pair], labels[of_pair]), 2),
            "direction": round(direction_accuracy(scores[of_pair], labels[of_pair]), 2),
        }
    return {
        "predictor": "motion, small network",
        "action": round(accuracy(scores, labels), 3),
        "direction": round(direction_accuracy(scores, labels), 3),
        "by pair": by_pair,
    }


def mean_of(measured: Measured, *names: str) -> dict[str, float]:
    """Means over all terms of some numbers."""
    return {
        name: round(math.fsum(measured.sums[name].totals) / sum(measured.sums[name].terms), 4)
        for name in names
    }


def score_geometry(train: dict[str, Tensor], test: dict[str, Tensor]) -> Iterator[dict[str, Any]]:
    """Errors of predictors that look at no pixel."""
    depth, known = test["depth"], train["depth"]
    constants = torch.linspace(1, 7, 121)
    errors = [float(((c - known).abs() / known).mean()) for c in constants]
    guesses = {
        "mean": known.mean().expand_as(depth),
        "constant of least error": constants[errors.index(min(errors))].expand_as(depth),
        "mean of each pixel": known.mean(dim=(0, 1)).expand_as(depth),
    }
    for name, guess in guesses.items():
        yield {"task": "depth", "predictor": name} | mean_of(
            depth_metrics(guess, depth), "abs_rel", "delta_1.25"
        )
    still = torch.eye(3, 4).expand_as(test["pose"])
    for name, guess in {"identity": still, "mean": train["pose"].mean(0).expand_as(still)}.items():
        yield {"task": "pose, first to last frame", "predictor": name} | mean_of(
            pose_metrics(guess, test["pose"]),
            "end_point_error",
            "rotation_error",
            "translation_error",
        )
    points, visible = (
        rearrange(test["points"], "n p T c -> n T p c"),
        rearrange(test["points_visible"], "n p T -> n T p"),
    )
    query = test["query_frames"]
    place = repeat(query, "n p -> n 1 p c", c=2)
    static = points.gather(1, place).expand_as(points)
    yield {"task": "points", "predictor": "static, always seen"} | mean_of(
        track_metrics(static, torch.ones_like(visible), points, visible, query),
        "average_jaccard",
        "average_pts_within_thresh",
        "occlusion_accuracy",
    )
    boxes, valid = (
        rearrange(test["boxes"], "n m T c -> n T m c"),
        rearrange(test["boxes_valid"], "n m T -> n T m"),
    )
    counts = valid & valid[:, :1]
    yield {"task": "boxes", "predictor": "static"} | mean_of(
        box_metrics(boxes[:, :1].expand_as(boxes), boxes, valid=counts), "mean_iou"
    )
    total, terms = test["static masks"].double().sum(dim=0).tolist()
    row = {"task": "masks", "predictor": "static", "mean_iou": round(total / terms, 4)}
    yield row


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=4320, help="clips, at most 12960")
    parser.add_argument("--test", type=int, default=1080, help="clips, at most 1296")
    parser.add_argument("--epochs", type=int, default=10, help="of the networks")
    parser.add_argument("--speed-clips", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {
        "machine": machine(),
        "clips": {"train": args.train, "test": args.test},
    }

    def keep(section: str, row: dict[str, Any]) -> None:
        record.setdefault(section, []).append(row)
        print(json.dumps(row), flush=True)
        if args.output:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(json.dumps(record, indent=2) + "\n")

    print(json.dumps(record), flush=True)
    for row in measure_speed(args.speed_clips, args.rounds):
        keep("speed, 17 frames, one process", row)
    classes = SyntheticWorld.classes
    chance = {label: round(1 / len(classes[label]), 3) for label in LABELS}
    keep("classes", {"predictor": "chance", **chance, "direction": 0.5})
    train, test = gather("train", args.train), gather("test", args.test)
    for row in score_geometry(train, test):
        keep("geometry", row)
    for row in score_classes(train, test, args.epochs):
        keep("classes", row)
    keep("classes", score_motion(train, test, args.epochs, classes["action"]))


if __name__ == "__main__":
    main()
