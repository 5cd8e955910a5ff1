"""Any PyTorch model as a frozen backbone: the ten lines that a user writes are a call of this.

Axes: b batch, c channels, T H W pixels, t h w feature grid, n tokens, d width.
"""

import dataclasses
import functools
import hashlib
import inspect
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import EinopsError, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from probe_readouts import weights_hash

Read = Callable[..., Mapping[int, Tensor]]
"""(model, video `b 3 T H W`, blocks) -> features `b t h w d` by block."""
Grid = tuple[int, int, int]
HASH_DIGITS = 16


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Pixels:
    """What a model wants of its pixels; clips come in [-1, 1]."""

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Subtracted from pixels in [0, 1], for red, green and blue."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """What they are divided by then; with the default of both, pixels stay in [-1, 1]."""
    size: int = 0
    """Height and width that frames are resized to (bilinear); 0 keeps theirs."""
    num_frames: int = 0
    """Frames that are kept, from the first; 0 keeps all."""

    def __call__(self, video: Float[Tensor, "b 3 T H W"]) -> Float[Tensor, "b 3 T2 H2 W2"]:
        """The pixels as the model wants them.

        Raises:
            ValueError: if the clip has fewer frames.
        """
        if video.shape[2] < self.num_frames:
            raise ValueError(
                f"the model takes {self.num_frames} frames but clips have {video.shape[2]}; raise "
                "--data.num-frames"
            )
        if self.num_frames:
            video = video[:, :, : self.num_frames]
        if self.size and video.shape[3:] != (self.size, self.size):
            frames = F.interpolate(
                rearrange(video, "b c T H W -> (b T) c H W"),
                size=(self.size, self.size),
                mode="bilinear",
                antialias=True,
            )
            video = rearrange(frames, "(b T) c H W -> b c T H W", b=video.shape[0])
        mean, std = (video.new_tensor(values) for values in (self.mean, self.std))
        pixels = (video + 1) / 2 - rearrange(mean, "c -> c 1 1 1")
        return pixels / rearrange(std, "c -> c 1 1 1")


@dataclasses.dataclass(frozen=True, slots=True)
class Submodules:
    """Reads the outputs of submodules: the first named is block 0, the next block 1, and so on.

    Where a submodule returns a tuple, its first item is read.
    """

    names: Sequence[str]
    """Names as in `model.named_modules()`, such as `encoder.layer.3`."""
    takes: str = "b c t h w"
    """Axes of what the model takes: `b t c h w`, or `(b t) c h w` for a model of pictures."""
    gives: str = "b (t h w) d"
    """Axes of what the submodules return: tokens, or `b d t h w`, or `(b t) (h w) d`, ..."""
    grid: Grid | Callable[[int, int, int], Grid] | None = None
    """t, h, w of tokens, or a function of T, H, W; not needed where each axis is its own."""
    skip: int = 0
    """Tokens before those of the grid, such as a class token."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))  # a list has another hash

    def __call__(
        self, model: nn.Module, video: Float[Tensor, "b 3 T H W"], blocks: Sequence[int]
    ) -> dict[int, Tensor]:
        """Features of the asked blocks from one pass.

        Raises:
            ValueError: if a submodule is not there, does not run, or returns another thing than
                `gives` and `grid` say.
        """
        outputs: dict[int, Any] = {}
        with self._listening(model, blocks, outputs):
            model(rearrange(video, f"b c t h w -> {self.takes}"))
        return {block: self._on_grid(block, outputs, video) for block in blocks}

    @contextmanager
    def _listening(
        self, model: nn.Module, blocks: Sequence[int], outputs: dict[int, Any]
    ) -> Iterator[None]:
        """While it is open, outputs of the blocks' submodules are kept."""
        modules = dict(model.named_modules())
        missing = [name for name in self.names if name not in modules]
        if missing:
            raise ValueError(
                f"the model has no submodule {missing[0]!r}; it has {', '.join(list(modules)[1:9])}"
                ", ... (model.named_modules())"
            )
        handles = []
        try:
            for block in blocks:

                def keep(module: nn.Module, given: Any, output: Any, block: int = block) -> None:
                    outputs[block] = output[0] if isinstance(output, (tuple, list)) else output

                handles.append(modules[self.names[block]].register_forward_hook(keep))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _on_grid(self, block: int, outputs: Mapping[int, Any], video: Tensor) -> Tensor:
        name = self.names[block]
        output = outputs.get(block)
        if not isinstance(output, Tensor):
            what = "does not run" if block not in outputs else f"returns {type(output).__name__}"
            raise ValueError(f"submodule {name!r} (block {block}) {what}; it must return a tensor")
        grid = self.grid(*video.shape[2:]) if callable(self.grid) else self.grid
        sizes = {"b": video.shape[0], **dict(zip("thw", grid or (), strict=False))}
        axes = set(self.gives.replace("(", " ").replace(")", " ").split())
        sizes = {axis: size for axis, size in sizes.items() if axis in axes}
        try:
            return rearrange(output[:, self.skip :], f"{self.gives} -> b t h w d", **sizes)
        except (EinopsError, RuntimeError) as error:
            shape = tuple(output.shape)
            tokens = f" after {self.skip} skipped" if self.skip else ""
            raise ValueError(
                f"submodule {name!r} (block {block}) returns {shape}, which is not "
                f"{self.gives!r}{tokens} with {sizes}; correct gives, grid or skip"
            ) from error


class ModuleBackbone:
    """A PyTorch model with a function that reads its features, as a `FrozenBackbone`.

    Its inputs are the pixels. It knows no noise, so that the timestep is always 0, unless
    `noise_level` is given.

    Args:
        name: what tables call it.
        model: evaluated as it is, without gradients.
        read: (model, video `b 3 T H W`, blocks) to a dict of features `b t h w d` by block; or
            `Submodules`. With `noise_level` it is also given `timestep`, `seed` and `sample_ids`,
            by name: noise must depend on seed, name and timestep alone.
        num_blocks: the last block; blocks count from 0. Not needed with `Submodules`.
        width: channels of the features.
        pixels: what the model wants of its pixels; `read` is given them so.
        noise_level: timestep to `alpha`, `sigma` and `log_snr`; raises ValueError out of range.

    Raises:
        ValueError: naming the argument that is of no use.
    """

    encoder_hash = ""

    def __init__(
        self,
        name: str,
        model: nn.Module,
        read: Read,
        num_blocks: int | None = None,
        width: int = 0,
        *,
        pixels: Callable[[Tensor], Tensor] = Pixels(),
        noise_level: Callable[[int], dict[str, float]] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"model of backbone {name!r} is of type {type(model).__name__}; expected a "
                "torch.nn.Module, with its weights loaded"
            )
        if num_blocks is None and isinstance(read, Submodules):
            num_blocks = len(read.names) - 1
        for what, number, least in (("num_blocks", num_blocks, 0), ("width", width, 1)):
            if number is None or number < least:
                raise ValueError(
                    f"{what} {number} of backbone {name!r} must be given, and at least {least}"
                )
        assert num_blocks is not None
        self.name, self.num_blocks, self.width = name, num_blocks, width
        self.model = model.eval().requires_grad_(False)
        self.read, self.pixels, self.noise = read, pixels, noise_level
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        parts = (weights_hash(model), told(read), told(pixels))
        self.weights_hash = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:HASH_DIGITS]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        return tensors[0].device if tensors else torch.device("cpu")

    def to(self, device: torch.device | str) -> "ModuleBackbone":
        """Moves the weights."""
        self.model.to(device)
        return self

    def shardable(self) -> Sequence[nn.Module]:
        """The modules of the model's longest list, which in a transformer are its layers."""
        lists = [part for part in self.model.modules() if isinstance(part, nn.ModuleList)]
        return list(max(lists, key=len, default=()))

    def encode(self, video: Float[Tensor, "b 3 T H W"]) -> Float[Tensor, "b 3 T H W"]:
        """The pixels, on the device of the weights."""
        return video.to(self.device)

    def features(
        self,
        inputs: Float[Tensor, "b 3 T H W"],
        *,
        blocks: Sequence[int],
        timestep: int,
        seed: int,
        sample_ids: Sequence[str],
    ) -> dict[int, Float[Tensor, "b t h w d"]]:
        """See `FrozenBackbone.features`.

        Raises:
            ValueError: if what `read` returns is not what it should be.
        """
        self.noise_level(timestep)
        noise = {"timestep": timestep, "seed": seed, "sample_ids": sample_ids} if self.noise else {}
        with torch.no_grad():
            with told_errors(f"backbone {self.name!r}"):
                found = self.read(self.model, self.pixels(inputs), tuple(blocks), **noise)
            self._check(found, blocks, inputs.shape[0])
            return {block: ordinary(found[block]) for block in blocks}

    def noise_level(self, timestep: int) -> dict[str, float]:
        """See `FrozenBackbone.noise_level`."""
        if self.noise is not None:
            return self.noise(timestep)
        if timestep != 0:
            raise ValueError(
                f"timestep {timestep} must be 0: backbone {self.name!r} knows no noise"
            )
        return {"alpha": 1.0, "sigma": 0.0, "log_snr": float("inf")}

    def _check(self, found: Any, blocks: Sequence[int], count: int) -> None:
        expected = (
            f"expected a dict of block -> features `b t h w d` with b={count}, d={self.width}"
        )
        what = f"what backbone {self.name!r} reads"
        if not isinstance(found, Mapping):
            raise ValueError(f"{what} is of type {type(found).__name__}; {expected}")
        for block in blocks:
            if block not in found:
                have = ", ".join(map(str, found)) or "none"
                raise ValueError(f"{what} lacks block {block}, has {have}; {expected}")
            grid = found[block]
            if not isinstance(grid, Tensor) or not grid.is_floating_point():
                kind = grid.dtype if isinstance(grid, Tensor) else type(grid).__name__
                raise ValueError(f"{what} for block {block} is {kind}, not floats; {expected}")
            if grid.ndim != 5 or (grid.shape[0], grid.shape[4]) != (count, self.width):
                raise ValueError(f"{what} for block {block} is {tuple(grid.shape)}; {expected}")
            if not bool(torch.isfinite(grid).all()):
                raise ValueError(
                    f"{what} for block {block} holds NaN or infinite values; check the weights, "
                    "and that pixels are as the model wants them"
                )


@contextmanager
def told_errors(whose: str) -> Iterator[None]:
    """While it is open, a user's code is run, and a mistake in it becomes a ValueError.

    Raises:
        ValueError: naming the error, and the line that raised it.
    """
    try:
        yield
    except (ValueError, OSError, ImportError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise ValueError(
            f"{whose} raised {type(error).__name__}: {error} ({Path(last.filename).name}, line "
            f"{last.lineno}); --debug shows where"
        ) from error


def ordinary(grid: Tensor) -> Tensor:
    """The tensor without gradients, one that a readout may be trained on."""
    grid = grid.detach()
    return grid.clone() if grid.is_inference() else grid


def told(what: Any) -> str:
    """What a function or a record of settings does, as text that is the same on every machine."""
    if dataclasses.is_dataclass(what) and not isinstance(what, type):
        fields = [(field.name, getattr(what, field.name)) for field in dataclasses.fields(what)]
        values = [f"{name}={told(value) if callable(value) else value!r}" for name, value in fields]
        return f"{type(what).__name__}({', '.join(values)})"
    if isinstance(what, functools.partial):
        return f"{told(what.func)} of {what.args} and {sorted(what.keywords.items())}"
    try:
        source = textwrap.dedent(inspect.getsource(what))
    except (OSError, TypeError):  # typed into a shell, or an instance that can be called
        return getattr(what, "__qualname__", type(what).__qualname__)
    # What the source leaves open: variables of the function around it.
    around = inspect.getclosurevars(what).nonlocals if inspect.isfunction(what) else {}
    settings = {name: v for name, v in sorted(around.items()) if isinstance(v, int | float | str)}
    return f"{source} with {settings}" if settings else source
