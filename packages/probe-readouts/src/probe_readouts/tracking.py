"""Track readouts: points and boxes, followed through a clip by a recurrent state per query.

Axes: `b` batch, `t h w` grid of the features, `c` feature channels, `s` frames of the tracks,
`q` queries, `v` coordinates (2 of a point, 4 of a box), `p` state width. Points and boxes are
those of `probe_readouts.geometry`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from probe_readouts.attention import MLP, NORM_EPS, CrossAttentionBlocks, KeysValues, init_linear
from probe_readouts.geometry import check_boxes, check_points
from probe_readouts.positional import NUM_OCTAVES, fourier_features
from probe_readouts.readout import Readout

STATE_NORM_EPS = 1e-4


class Tracks(NamedTuple):
    """Predicted tracks. Frames before a query's own and padded queries have no meaning."""

    values: Float[Tensor, "b s q v"]
    """Points `xy` or boxes `xyxy` in [0, 1]."""
    logits: Float[Tensor, "b s q 2"]
    """Visibility and certainty, before the sigmoid."""
    states: Float[Tensor, "b s q p"]
    """State after each frame: what the next frame starts from."""

    @property
    def visible(self) -> Bool[Tensor, "b s q"]:
        """Whether sigmoid(visibility) * sigmoid(certainty) is above one half."""
        return self.logits.sigmoid().prod(dim=-1) > 0.5


class TrackStep(nn.Module):
    """One frame of the recurrence: correct the states by what the frame shows, predict the next.

    Every operation is on all queries of all samples. `readout.step.compile()` compiles the step
    once for all frames.

    Args:
        width: channels of the states.
        feature_dim: channels of the features.
        num_blocks: cross-attention blocks of the correction.
        num_heads: heads of each.
        qkv_width: channels of queries, keys and values.
        hidden_width: channels inside the MLP of each.
    """

    def __init__(
        self,
        width: int,
        feature_dim: int,
        *,
        num_blocks: int,
        num_heads: int,
        qkv_width: int,
        hidden_width: int,
    ) -> None:
        super().__init__()
        self.input = nn.Linear(width, width)
        self.blocks = CrossAttentionBlocks(
            num_blocks,
            width,
            feature_dim,
            num_heads=num_heads,
            qkv_width=qkv_width,
            hidden_width=hidden_width,
        )
        self.norm = nn.LayerNorm(width, eps=NORM_EPS, bias=False)
        self.output = nn.Linear(width, width)
        self.predictor = MLP(width, width)
        self.state_norm = nn.LayerNorm(width, eps=STATE_NORM_EPS, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights from torch's default generator; norms start as the identity."""
        self.blocks.reset_parameters()
        for linear in (self.input, self.output):
            init_linear(linear)
        self.norm.reset_parameters()
        self.predictor.reset_parameters()
        self.state_norm.reset_parameters()

    def forward(
        self, state: Float[Tensor, "b q p"], frame: Sequence[KeysValues]
    ) -> tuple[Float[Tensor, "b q p"], Float[Tensor, "b q p"]]:
        """Compute the corrected state and the next one.

        Args:
            state: state before the frame.
            frame: the frame's keys and values, for every block.
        """
        x = self.blocks(self.input(state), frame)
        corrected = state + self.output(self.norm(x))
        return corrected, self.state_norm(corrected + self.predictor(corrected))


class TrackReadout(Readout):
    """Follows queries through a clip: the recurrence that points and boxes share.

    The state of a query starts as an MLP of the Fourier features of its coordinates. Frame by
    frame it is corrected by cross-attention to the frame's features, from which the outputs are
    read, and advanced by a predictor. A query of frame f sets its state anew at f.

    Keys and values do not depend on the states and are computed for all frames before the loop,
    and the outputs for all frames after it.

    Reference:
        Velez et al., From Image to Video (2025), Sec. 3.4, App. D.5 and D.6 and Table 6; van
        Steenkiste et al., Moving Off-the-Grid (NeurIPS 2024), Sec. 3 (MooG).

    Args:
        feature_dim: channels of the features.
        width: channels of the states.
        num_blocks: cross-attention blocks of the correction.
        num_heads: heads of each.
        qkv_width: channels of queries, keys and values.
        hidden_width: channels inside the MLP of each block.
        num_octaves: octaves of the Fourier features of each coordinate.
        time_method: how features are resized in time, see `probe_readouts.temporal_matrix`.

    Raises:
        ValueError: a size is not positive, `num_heads` does not divide `qkv_width`, or the time
            method is unknown.
    """

    num_values: int
    """Coordinates of a query."""

    def __init__(
        self,
        feature_dim: int,
        *,
        width: int = 512,
        num_blocks: int = 3,
        num_heads: int = 8,
        qkv_width: int = 512,
        hidden_width: int = 2048,
        num_octaves: int = NUM_OCTAVES,
        time_method: str = "paper",
    ) -> None:
        blocks = {
            "num_blocks": num_blocks,
            "num_heads": num_heads,
            "qkv_width": qkv_width,
            "hidden_width": hidden_width,
        }
        sizes = {"width": width, **blocks, "num_octaves": num_octaves}
        super().__init__(feature_dim, time_method, sizes)
        self.num_octaves = num_octaves
        self.initializer = MLP(2 * num_octaves * self.num_values, width, width)
        self.step = TrackStep(width, feature_dim, **blocks)
        self.value_head = MLP(width, width, self.num_values)
        self.logit_head = MLP(width, width, 2)

    def reset_parameters(self) -> None:
        """Draw new weights from torch's default generator; norms start as the identity."""
        for module in (self.initializer, self.step, self.value_head, self.logit_head):
            module.reset_parameters()

    def check_queries(self, queries: Tensor, valid: Tensor | None) -> None:
        """Refuse queries that are no points or boxes of the image."""
        raise NotImplementedError

    def forward(
        self,
        features: Float[Tensor, "b t h w c"],
        queries: Float[Tensor, "b q v"],
        query_frames: Int[Tensor, "b q"] | None = None,
        valid: Bool[Tensor, "b q"] | None = None,
        num_frames: int | None = None,
    ) -> Tracks:
        """Follow queries through every clip.

        Args:
            features: residual stream of the backbone, on its grid.
            queries: points `xy` or boxes `xyxy`, in [0, 1].
            query_frames: frame that each query is given in, in [0, frames of the tracks); None
                gives all in frame 0.
            valid: which queries count; the others are padding and may hold anything. No query
                sees another, so padding changes no track.
            num_frames: frames of the tracks, when the features have fewer or more: features are
                resized in time. None takes the features' own.

        Returns:
            Tracks with one entry for every frame and query.

        Raises:
            ValueError: features of wrong rank, width or dtype, an empty grid or values that are
                not finite; queries that `check_points` or `check_boxes` refuses, or that are given
                in a frame outside the clip; shapes that do not fit; frames that the time method
                cannot make.
        """
        self._check_features(features)
        expected = (len(features), queries.shape[1] if queries.ndim == 3 else -1, self.num_values)
        if tuple(queries.shape) != expected:
            raise ValueError(
                f"queries of shape {tuple(queries.shape)} must be (b, q, {self.num_values}) with "
                f"b = {len(features)}, the batch of the features"
            )
        for name, given in {"query_frames": query_frames, "valid": valid}.items():
            if given is not None and given.shape != queries.shape[:2]:
                raise ValueError(
                    f"{name} of shape {tuple(given.shape)} must be (b, q) = "
                    f"{tuple(queries.shape[:2])}, one for each query"
                )
        if not torch.compiler.is_compiling() and not queries.is_meta:
            self.check_queries(queries, valid)
            if query_frames is not None:
                check_query_frames(query_frames, valid, self._num_frames(features, num_frames))
        if valid is not None:
            queries = torch.where(rearrange(valid, "b q -> b q 1"), queries, 0.5)
        return self.track(features, queries, query_frames, num_frames)

    def track(
        self,
        features: Float[Tensor, "b t h w c"],
        coordinates: Float[Tensor, "b q v"],
        query_frames: Int[Tensor, "b q"] | None = None,
        num_frames: int | None = None,
    ) -> Tracks:
        """Follow coordinates of any range through every clip; `forward` without its convention.

        For weights that were trained on other coordinates, which enter the Fourier features as
        they are.

        Raises:
            ValueError: features that are not finite, or frames that the time method cannot make.
        """
        weight_dtype = self.initializer.expand.weight.dtype
        position = fourier_features(coordinates, self.num_octaves).to(weight_dtype)
        initial = self.initializer(position).to(weight_dtype)
        frames = self._project(features, self._num_frames(features, num_frames))
        state, corrected, states = initial, [], []
        for index, frame in enumerate(frames):
            if query_frames is not None:
                starts = rearrange(query_frames == index, "b q -> b q 1")
                state = torch.where(starts, initial, state)
            outputs, state = self.step(state, frame)
            corrected.append(outputs)
            states.append(state)
        outputs = torch.stack(corrected, dim=1)
        tracks = Tracks(
            values=self._read(self.value_head, outputs).sigmoid(),
            logits=self._read(self.logit_head, outputs),
            states=torch.stack(states, dim=1),
        )
        self._check_finite(features, tracks.logits)
        return tracks

    def _project(self, features: Tensor, num_frames: int) -> list[tuple[KeysValues, ...]]:
        """Compute the keys and values of every frame for every block."""
        blocks = self.step.blocks.project(features, num_frames, self.time_method)
        unbound = [zip(block.keys.unbind(), block.values.unbind(), strict=True) for block in blocks]
        return [
            tuple(KeysValues(*frame) for frame in frames) for frames in zip(*unbound, strict=True)
        ]


class PointTrackReadout(TrackReadout):
    """Follows points: position, visibility and certainty in every frame; see `TrackReadout`."""

    num_values = 2

    def check_queries(self, queries: Tensor, valid: Tensor | None) -> None:
        """Refuse points outside the image."""
        check_points(queries, valid)


class BoxTrackReadout(TrackReadout):
    """Follows boxes; see `TrackReadout`.

    The published parameter count holds the head of visibility and certainty too. Nothing trains
    it: boxes have no such labels.
    """

    num_values = 4

    def check_queries(self, queries: Tensor, valid: Tensor | None) -> None:
        """Refuse boxes outside the image or of negative area."""
        check_boxes(queries, valid)


def check_query_frames(query_frames: Tensor, valid: Tensor | None, num_frames: int) -> None:
    """Refuse queries that count and are given outside the clip."""
    if query_frames.is_floating_point():
        raise ValueError(f"query_frames are {query_frames.dtype}; they must be whole numbers")
    wrong = (query_frames < 0) | (query_frames >= num_frames)
    if valid is not None:
        wrong &= valid
    if bool(wrong.any()):
        sample, query = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"query {query} of sample {sample} is given in frame {int(query_frames[sample, query])}"
            f", but the clip has frames 0 .. {num_frames - 1}; drop it or mark it as not valid"
        )
