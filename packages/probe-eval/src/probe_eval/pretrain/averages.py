"""The moving average of a model's weights, also of weights that FSDP has cut into shards."""

import copy
from collections.abc import Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

Model = TypeVar("Model", bound=nn.Module)


class Averages(Generic[Model]):
    """Averages of a model's weights over about the last `1 / (1 - decay)` steps.

    `torch.optim.swa_utils.AveragedModel` copies a model, which one that FSDP has sharded refuses;
    here each process averages its own shards. The first update copies, later ones keep the share
    `decay` of what was there: less in the first steps, `(1 + step) / (10 + step)`, so that an
    average of thousand steps is not full of the first hundreds for long.

    Args:
        model: what is trained, before it is wrapped; its parameters may be replaced later.
        decay: share that stays in an update; 0 for none, so that the result is the model itself.
        device: where the result is to be.
    """

    def __init__(self, model: Model, decay: float, device: torch.device) -> None:
        self.model, self.decay, self.device = model, decay, device
        self.local: list[Tensor] | None = None
        self.whole = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights of a step, counted from 1."""
        if not self.decay:
            return
        now = [local(parameter).detach() for parameter in self.model.parameters()]
        if self.local is None:
            self.local = [value.clone() for value in now]
        else:
            kept = min(self.decay, (1 + step) / (10 + step))
            get_ema_multi_avg_fn(kept)(self.local, now, None)

    @torch.no_grad()
    def gather(self) -> Model:
        """A whole model with the averages, on every process; the same one in each call."""
        self.whole.to(self.device)
        values = self.tensors() or {
            name: whole(parameter, local(parameter))
            for name, parameter in self.model.named_parameters()
        }
        for name, parameter in self.whole.named_parameters():
            parameter.copy_(values[name])
        return self.whole

    @torch.no_grad()
    def tensors(self) -> dict[str, Tensor]:
        """The averages, whole, by name; none before the first update, or without a decay."""
        if self.local is None:
            return {}
        pairs = zip(self.model.named_parameters(), self.local, strict=True)
        return {name: whole(parameter, value) for (name, parameter), value in pairs}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`.

        Raises:
            ValueError: if they are not those of this model.
        """
        parameters = dict(self.model.named_parameters())
        expected = parameters.keys() if self.decay else set()
        if tensors.keys() != expected:
            names = sorted(tensors.keys() ^ expected)
            raise ValueError(f"averages of another model: {', '.join(names[:3])} differ")
        if expected:
            self.local = [part(value, tensors[name]) for name, value in parameters.items()]


def local(tensor: Tensor) -> Tensor:
    """What of a tensor lies in this process."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(like: Tensor, value: Tensor) -> Tensor:
    """The tensor of which `value` is this process's part, where `like` is divided likewise."""
    if not isinstance(like, DTensor):
        return value.detach()
    return DTensor.from_local(
        value, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    ).full_tensor()


def part(like: Tensor, value: Tensor) -> Tensor:
    """This process's part of a whole tensor, divided as `like` is."""
    value = value.to(like.device)
    if isinstance(like, DTensor):
        value = distribute_tensor(value, like.device_mesh, like.placements).to_local()
    return value.clone()
