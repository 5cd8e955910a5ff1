"""Depth readout: metric depth at any place of every frame.

Axes: `b` batch, `t h w` grid of the features, `c` feature channels, `s` frames of the depth,
`q` places, `H W` pixels. A place is `(y, x)` in [-1, 1], where -1 is the centre of the first
pixel of its axis and 1 that of the last.
"""

import dataclasses
import functools

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from probe_readouts.attention import NORM_EPS, CrossAttentionBlocks, KeysValues, init_linear
from probe_readouts.positional import NUM_OCTAVES, fourier_features
from probe_readouts.readout import Readout

TRAINING_STRIDE = 8
EVALUATION_STRIDE = 4


@dataclasses.dataclass(frozen=True, slots=True)
class PixelGrid:
    """Every `stride`-th pixel of an image, from `offset` on: where depth is decoded.

    Reference:
        Velez et al., From Image to Video (2025), App. D.3.

    Raises:
        ValueError: a stride below 1, or an offset outside the image.
    """

    size: tuple[int, int]
    """Rows and columns of the image."""
    stride: int
    """Pixels from one to the next, on both axes."""
    offset: tuple[int, int] = (0, 0)
    """Row and column of the first pixel."""

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ValueError(f"stride {self.stride} must be at least 1")
        if not all(0 <= first < side for first, side in zip(self.offset, self.size, strict=True)):
            raise ValueError(
                f"offset {self.offset} must be a pixel of the image, rows and columns {self.size}"
            )

    @classmethod
    def training(
        cls, size: tuple[int, int], generator: torch.Generator | None = None
    ) -> "PixelGrid":
        """The grid of one training step: every 8th pixel from a random one on.

        Args:
            size: rows and columns of the image. Where 8 divides both, all grids have one shape.
            generator: CPU generator of the offset; None takes torch's default.
        """
        offset = [
            int(torch.randint(max(1, min(TRAINING_STRIDE, side)), (), generator=generator))
            for side in size
        ]
        return cls(size, TRAINING_STRIDE, (offset[0], offset[1]))

    @classmethod
    def evaluation(cls, size: tuple[int, int]) -> "PixelGrid":
        """The fixed grid of evaluation: every 4th pixel from the first on."""
        return cls(size, EVALUATION_STRIDE)

    def coordinates(self, device: torch.device | str = "cpu") -> Float[Tensor, "h w 2"]:
        """The places `(y, x)` of the pixels; an axis of one pixel is at -1."""
        axes = [
            torch.linspace(-1, 1, side, device=device)[first :: self.stride]
            for first, side in zip(self.offset, self.size, strict=True)
        ]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)

    def subsample(self, image: Tensor) -> Tensor:
        """The grid's pixels of a depth map or mask, whose last axes are `H W`.

        Raises:
            ValueError: an image of another size.
        """
        if tuple(image.shape[-2:]) != tuple(self.size):
            raise ValueError(
                f"image of shape {tuple(image.shape)} must end in rows and columns {self.size}, "
                "the size that the grid was made for"
            )
        return image[..., self.offset[0] :: self.stride, self.offset[1] :: self.stride]


class DepthReadout(Readout):
    """Reads metric depth at given places, each frame and each place on its own.

    A query is zeros as wide as the features, then the Fourier features of its place. It attends
    to one frame's features; a linear layer reads the depth. This is the decoder of the Scene
    Representation Transformer.

    Places are decoded in chunks when no gradient is wanted, so that memory does not grow with
    their number. With `checkpoint` training does so too, and computes each chunk a second time
    in the backward pass. Queries that all frames share are encoded once.

    Reference:
        Velez et al., From Image to Video (2025), Sec. 3.4, App. D.3 and Table 6; Sajjadi et al.,
        Scene Representation Transformer (CVPR 2022), Sec. 3.2.

    Args:
        feature_dim: channels of the features.
        num_blocks: cross-attention blocks.
        num_heads: heads of each, a divisor of `qkv_width`.
        qkv_width: channels of queries, keys and values.
        hidden_width: channels inside the MLP of each block.
        num_octaves: octaves of the Fourier features of each axis.
        time_method: how features are resized in time, see `probe_readouts.temporal_matrix`.
        max_queries: places times frames times samples that are decoded at once in a chunk; at the
            default sizes each takes about 25 kB.
        checkpoint: whether training decodes in chunks, for less memory and more time.

    Raises:
        ValueError: a size is not positive, `num_heads` does not divide `qkv_width`, or the time
            method is unknown.
    """

    def __init__(
        self,
        feature_dim: int,
        *,
        num_blocks: int = 1,
        num_heads: int = 2,
        qkv_width: int = 512,
        hidden_width: int = 512,
        num_octaves: int = NUM_OCTAVES,
        time_method: str = "paper",
        max_queries: int = 16384,
        checkpoint: bool = False,
    ) -> None:
        attention = {
            "num_heads": num_heads,
            "qkv_width": qkv_width,
            "hidden_width": hidden_width,
        }
        sizes = {"num_blocks": num_blocks, **attention, "num_octaves": num_octaves}
        super().__init__(
            feature_dim,
            time_method,
            {**sizes, "max_queries": max_queries},
            {"checkpoint": checkpoint},
        )
        self.num_octaves = num_octaves
        self.max_queries = max_queries
        self.checkpoint = checkpoint
        width = feature_dim + 4 * num_octaves
        self.blocks = CrossAttentionBlocks(num_blocks, width, feature_dim, **attention)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS, bias=False)
        self.output = nn.Linear(width, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights from torch's default generator; norms start as the identity."""
        self.blocks.reset_parameters()
        self.norm.reset_parameters()
        init_linear(self.output)

    def forward(
        self,
        features: Float[Tensor, "b t h w c"],
        coordinates: Float[Tensor, "*q 2"],
        num_frames: int | None = None,
    ) -> Float[Tensor, "b s ..."]:
        """Compute depth at given places of every frame.

        Args:
            features: residual stream of the backbone, on its grid.
            coordinates: places `(y, x)` in [-1, 1]. `q 2`, or `H W 2` as `PixelGrid` gives, are
                the places of all frames and samples; `b s q 2` are those of each frame.
            num_frames: frames of the depth, when the features have fewer or more: features are
                resized in time. None takes the features' own.

        Returns:
            Depth in metres, `b s q` or `b s H W`. Nothing bounds it: it may be negative.

        Raises:
            ValueError: features of wrong rank, width or dtype, an empty grid or values that are
                not finite; coordinates of another shape or outside [-1, 1]; frames that the time
                method cannot make.
        """
        self._check_features(features)
        num_frames = self._num_frames(features, num_frames)
        self._check_coordinates(coordinates, (len(features), num_frames))
        places, shape = coordinates, coordinates.shape[:-1]
        if places.ndim == 4:
            shape = shape[2:]
        else:
            places = rearrange(places, "... yx -> 1 1 (...) yx")
        depth = self._decode(
            rearrange(places, "b s q yx -> (s b) q yx"), self._project(features, num_frames)
        )
        self._check_finite(features, depth)
        depth = rearrange(depth, "(s b) q -> b s q", b=len(features))
        return depth.unflatten(-1, shape)

    def _check_coordinates(self, coordinates: Tensor, frames: tuple[int, int]) -> None:
        """Refuse places of the wrong shape or outside the image."""
        shape = tuple(coordinates.shape)
        if coordinates.ndim not in (2, 3, 4) or shape[-1] != 2 or 0 in shape:
            raise ValueError(
                f"coordinates of shape {shape} must be (q, 2) or (H, W, 2), for all frames, or "
                "(b, s, q, 2), and not empty"
            )
        if coordinates.ndim == 4 and shape[:2] != frames:
            raise ValueError(
                f"coordinates of shape {shape} must begin with samples and frames {frames}; pass "
                "(q, 2) for places that all frames share"
            )
        if not coordinates.is_floating_point():
            raise ValueError(f"coordinates are {coordinates.dtype}; they must be (y, x) in [-1, 1]")
        if torch.compiler.is_compiling() or coordinates.is_meta:
            return
        if not bool((coordinates.abs() <= 1).all()):
            raise ValueError(
                "coordinates must be (y, x) in [-1, 1], -1 and 1 the centres of the first and "
                f"last pixel, got {float(coordinates.min()):.4g} .. {float(coordinates.max()):.4g}"
            )

    def _project(self, features: Tensor, num_frames: int) -> list[KeysValues]:
        """Compute the keys and values of all frames for every block, frames times samples."""
        blocks = self.blocks.project(features, num_frames, self.time_method)
        return [
            KeysValues(*(rearrange(x, "s b heads n d -> (s b) heads n d") for x in block))
            for block in blocks
        ]

    def _decode(self, places: Tensor, attended_to: list[KeysValues]) -> Tensor:
        """Compute the depth at places of frames, in chunks where memory is to be bounded."""
        training = torch.is_grad_enabled()
        if training and not self.checkpoint:
            return self._decode_chunk(places, attended_to)
        decode = self._decode_chunk
        if training:
            decode = functools.partial(checkpoint, decode, use_reentrant=False)
        size = max(1, self.max_queries // len(attended_to[0].keys))
        chunks = places.split(size, dim=1)
        return torch.cat([decode(chunk, attended_to) for chunk in chunks], dim=1)

    def _decode_chunk(self, places: Tensor, attended_to: list[KeysValues]) -> Tensor:
        """Compute the depth at some places of frames."""
        position = fourier_features(places, self.num_octaves).to(self.output.weight.dtype)
        zeros = position.new_zeros(*position.shape[:-1], self.feature_dim)
        x = torch.cat([zeros, position], dim=-1)
        x = self.norm(self.blocks(x, attended_to))
        return rearrange(self._read(self.output, x), "f q 1 -> f q")
