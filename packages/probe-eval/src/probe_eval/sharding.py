"""A frozen backbone that is too large for one device, spread over the processes.

Each process holds a part of every large layer; a layer is put together when it runs. All processes
must therefore run their forwards together, though they have clips of their own, and not equally
many: before each forward they agree how deep it goes, and whoever has no clips left runs along.

Axes: b batch, T H W pixels, t h w feature grid, d width.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from accelerate import Accelerator
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from probe_eval.backbone import FrozenBackbone, load_backbone

DONE = -1
"""In place of a block: this process has no forwards left."""


def load_sharded(name: str, pretrained: str, accelerator: Accelerator) -> FrozenBackbone:
    """Loads a backbone, and spreads its layers over the processes where there are several.

    Each process reads all weights into the memory of its machine, but keeps only its part.

    Reference: fully sharded data parallelism (FSDP 2) of frozen weights, without its gradients.

    Args:
        name: see `load_backbone`.
        pretrained: see `load_backbone`.
        accelerator: the processes, and their devices.

    Raises:
        ValueError: as `load_backbone` does; or if the backbone does not say what can be spread.
    """
    if accelerator.num_processes == 1:
        return load_backbone(name, pretrained, accelerator.device)
    return ShardedBackbone(load_backbone(name, pretrained, "cpu"), accelerator)


@contextlib.contextmanager
def in_step(
    backbone: FrozenBackbone, video: Callable[[], Float[Tensor, "3 T H W"]]
) -> Iterator[None]:
    """While it is open, processes may run different numbers of forwards; all of them open it.

    At its end a process that is done runs along until all are. Nothing happens for a backbone that
    is not spread.

    Args:
        backbone: what runs.
        video: gives any clip, for a process that had none.
    """
    yield
    if isinstance(backbone, ShardedBackbone):
        backbone.run_along(video)


class ShardedBackbone:
    """A `FrozenBackbone` whose layers are spread over the processes.

    Every process must call `features` equally often, or inside `in_step`.

    Args:
        backbone: on the CPU, with `shardable` and `to`.
        accelerator: the processes, and their devices.

    Raises:
        ValueError: if the backbone does not say what can be spread.
    """

    def __init__(self, backbone: FrozenBackbone, accelerator: Accelerator) -> None:
        self.backbone, self.accelerator = backbone, accelerator
        self.name, self.num_blocks, self.width = backbone.name, backbone.num_blocks, backbone.width
        self.num_parameters = backbone.num_parameters
        self.weights_hash, self.encoder_hash = backbone.weights_hash, backbone.encoder_hash
        self.last_inputs: Tensor | None = None
        shard_modules(backbone, accelerator)

    def encode(self, video: Float[Tensor, "b 3 T H W"]) -> Tensor:
        """See `FrozenBackbone.encode`; each process on its own."""
        return self.backbone.encode(video)

    def features(
        self,
        inputs: Float[Tensor, "b ..."],
        *,
        blocks: Sequence[int],
        timestep: int,
        seed: int,
        sample_ids: Sequence[str],
    ) -> dict[int, Float[Tensor, "b t h w d"]]:
        """See `FrozenBackbone.features`; all processes together."""
        self.last_inputs = inputs[:1]
        deepest = self.agree(max(blocks))
        found = self.backbone.features(
            inputs,
            blocks=tuple(dict.fromkeys((*blocks, deepest))),
            timestep=timestep,
            seed=seed,
            sample_ids=sample_ids,
        )
        return {block: found[block] for block in blocks}

    def noise_level(self, timestep: int) -> dict[str, float]:
        """See `FrozenBackbone.noise_level`."""
        return self.backbone.noise_level(timestep)

    def agree(self, block: int) -> int:
        """The deepest block that a process needs in the coming forward; DONE if none needs any."""
        deepest = torch.tensor(block, device=self.accelerator.device)
        dist.all_reduce(deepest, dist.ReduceOp.MAX)
        return int(deepest)

    def run_along(self, video: Callable[[], Float[Tensor, "3 T H W"]]) -> None:
        """Takes part in the others' forwards until all processes are done."""
        while (deepest := self.agree(DONE)) != DONE:
            with torch.no_grad(), self.accelerator.autocast():
                if self.last_inputs is None:
                    self.last_inputs = self.encode(rearrange(video(), "c T H W -> 1 c T H W"))
                self.backbone.features(
                    self.last_inputs, blocks=(deepest,), timestep=0, seed=0, sample_ids=("",)
                )


def shard_modules(backbone: FrozenBackbone, accelerator: Accelerator) -> None:
    """Spreads the layers of a backbone over all processes; the rest of it each process has whole.

    Raises:
        ValueError: if it does not say which they are.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    find = getattr(backbone, "shardable", None)
    modules: Sequence[nn.Module] = find() if find is not None else ()
    if not modules:
        raise ValueError(
            f"backbone {backbone.name!r} does not say which of its layers can be spread over "
            "processes; give it shardable(), which returns its blocks, or leave --features.shard "
            "out"
        )
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for module in modules:
        # Each is a root of its own, whose weights would else stay together after its forward.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    backbone.to(accelerator.device)  # type: ignore[attr-defined]
