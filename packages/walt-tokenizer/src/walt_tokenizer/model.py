"""The causal video tokenizer: pixels to latents and back.

Axes: b batch, c latent channels, T H W pixels, t h w latent grid.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from walt_tokenizer import geometry
from walt_tokenizer.config import TokenizerConfig
from walt_tokenizer.layers import Stage, assert_finite_pixels, init_weights
from walt_tokenizer.networks import Decoder, Encoder
from walt_tokenizer.pretrained import PretrainedModel
from walt_tokenizer.quantize import quantize
from walt_tokenizer.streaming import (
    MAX_CHUNK,
    WHOLE,
    Cache,
    Pass,
    Streaming,
    choose_streaming,
    rechunk,
)

LAYOUT = torch.channels_last_3d


class VideoTokenizer(PretrainedModel):
    """Encodes clips to latents and decodes them.

    The first frame has a latent of its own, so an image is a video of one frame; no latent
    depends on a later frame. Latent statistics (per-channel mean and standard deviation) are
    part of the weights; until `fit_latent_statistics` has run they are 0 and 1.

    Without a gradient, clips too large to be worked on at once are cut into chunks of frames, and
    very large frames into strips of rows; the latents are the same but for rounding. `Streaming`
    sets the sizes by hand.

    Reference: MAGVIT-v2 (Yu et al., ICLR 2024), Sec. 3.2; continuous latents and their
        normalisation as in WALT (Gupta et al., ECCV 2024), Sec. 3.1.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latent_std", torch.ones(config.latent_channels))
        self.apply(init_weights)

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether training recomputes the activations of residual blocks to save memory."""
        return self.encoder.middle.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        for module in self.modules():
            if isinstance(module, Stage):
                module.gradient_checkpointing = value

    def encode(
        self,
        video: Float[Tensor, "b 3 T H W"],
        *,
        normalize: bool = False,
        streaming: Streaming | None = None,
    ) -> Float[Tensor, "b c t h w"]:
        """Latents of a batch of clips or, with T = 1, of images.

        Args:
            video: pixels in [-1, 1]; 1 + `config.temporal_stride` * k frames, height and width
                multiples of `config.spatial_stride`.
            normalize: subtract the stored mean and divide by the stored standard deviation of
                each latent channel, as the denoiser expects.
            streaming: how to cut the clip up; None chooses by its size, and says so in the log.
                Only without a gradient.

        Returns:
            One latent for the first frame and one for each further group of
            `config.temporal_stride` frames; -1 and 1 where the tokenizer quantises.

        Raises:
            ValueError: for an invalid frame count or size (the valid ones are named), or pixels
                that are not finite or not in [-1, 1].
        """
        geometry.num_latents(video.shape[2], self.config.temporal_stride)
        self.check_frames(video)
        plan = self.plan(video.shape[2:], video.element_size(), self.config.widths[0], streaming)
        if plan == WHOLE:
            return self.finish(self.encoder(video.contiguous(memory_format=LAYOUT)), normalize)
        parts = self.encode_stream([video], normalize=normalize, streaming=plan)
        return torch.cat(list(parts), dim=2)

    def decode(
        self,
        latents: Float[Tensor, "b c t h w"],
        *,
        denormalize: bool = False,
        streaming: Streaming | None = None,
    ) -> Float[Tensor, "b 3 T H W"]:
        """Clips from latents; values can overshoot [-1, 1] slightly and are not clamped.

        Args:
            latents: as returned by `encode`.
            denormalize: undo `encode(..., normalize=True)` first.
            streaming: as for `encode`; its numbers are those of the video.

        Raises:
            ValueError: for the wrong number of channels or an empty grid.
        """
        self.check_latents(latents)
        plan = self.plan(
            self.video_shape(latents),
            latents.element_size(),
            max(self.config.widths[:2]),
            streaming,
        )
        if plan == WHOLE:
            latents = self.denormalize(latents) if denormalize else latents
            return self.decoder(latents.contiguous(memory_format=LAYOUT))
        parts = self.decode_stream([latents], denormalize=denormalize, streaming=plan)
        return torch.cat(list(parts), dim=2)

    def forward(self, video: Float[Tensor, "b 3 T H W"]) -> Float[Tensor, "b 3 T H W"]:
        """Reconstruction of the clips: `decode(encode(video))`."""
        return self.decode(self.encode(video))

    @torch.no_grad()
    def encode_chunk(
        self,
        video: Float[Tensor, "b 3 T H W"],
        cache: Cache | None = None,
        *,
        normalize: bool = False,
        streaming: Streaming = WHOLE,
    ) -> tuple[Float[Tensor, "b c t h w"], Cache]:
        """Latents of the next frames of a clip, and what the chunk after these needs.

        Args:
            video: as for `encode`; after the first chunk, `config.temporal_stride` * k frames.
            cache: what the chunk before returned; None for the first one.
            normalize: as for `encode`.
            streaming: rows and cache device; its frames have no effect here.

        Raises:
            ValueError: as `encode`, or for a cache that does not fit.
        """
        stride = self.config.temporal_stride
        if cache is None:
            geometry.num_latents(video.shape[2], stride)
        elif video.shape[2] < 1 or video.shape[2] % stride:
            raise ValueError(
                f"a later chunk of {video.shape[2]} frames has no whole latents: expected a "
                f"multiple of {stride} frames"
            )
        self.check_frames(video)
        chunk = Pass(cache, streaming)
        latents = self.encoder(video.contiguous(memory_format=LAYOUT), chunk)
        return self.finish(latents, normalize), chunk.cache()

    @torch.no_grad()
    def decode_chunk(
        self,
        latents: Float[Tensor, "b c t h w"],
        cache: Cache | None = None,
        *,
        denormalize: bool = False,
        streaming: Streaming = WHOLE,
    ) -> tuple[Float[Tensor, "b 3 T H W"], Cache]:
        """Frames of the next latents of a clip, and what the chunk after these needs.

        Args:
            latents: as for `decode`.
            cache: what the chunk before returned; None for the first one.
            denormalize: as for `decode`.
            streaming: rows and cache device; its frames have no effect here.

        Raises:
            ValueError: as `decode`, or for a cache that does not fit.
        """
        self.check_latents(latents)
        chunk = Pass(cache, streaming)
        latents = self.denormalize(latents) if denormalize else latents
        return self.decoder(latents.contiguous(memory_format=LAYOUT), chunk), chunk.cache()

    def encode_stream(
        self,
        pieces: Iterable[Float[Tensor, "b 3 _T H W"]],
        *,
        normalize: bool = False,
        streaming: Streaming | None = None,
    ) -> Iterator[Float[Tensor, "b c t h w"]]:
        """Latents of a clip that arrives in pieces of any length, as soon as they are known.

        Memory does not depend on the length of the clip.

        Args:
            pieces: the frames of the clip in order, as for `encode`; 1 +
                `config.temporal_stride` * k in all.
            normalize: as for `encode`.
            streaming: frames in a chunk, and rows; None chooses by the size of a frame.

        Raises:
            ValueError: as `encode`; a wrong number of frames shows at the end only.
        """
        pieces, shape, itemsize = peek(pieces, "frames")
        plan = streaming or choose_streaming(
            None,
            *shape[3:],
            channels=self.config.widths[0],
            itemsize=itemsize,
            stride=self.config.temporal_stride,
        )
        frames = self.chunk_frames(plan)
        cache, done = None, 0
        for video in rechunk(pieces, frames + 1, frames):
            done += video.shape[2]
            geometry.num_latents(done, self.config.temporal_stride)
            latents, cache = self.encode_chunk(video, cache, normalize=normalize, streaming=plan)
            yield latents

    def decode_stream(
        self,
        pieces: Iterable[Float[Tensor, "b c _t h w"]],
        *,
        denormalize: bool = False,
        streaming: Streaming | None = None,
    ) -> Iterator[Float[Tensor, "b 3 T H W"]]:
        """Frames of latents that arrive in pieces of any length, as soon as they are known.

        Args:
            pieces: the latents of a clip in order, as for `decode`.
            denormalize: as for `decode`.
            streaming: frames in a chunk, and rows; None chooses by the size of a frame.

        Raises:
            ValueError: as `decode`.
        """
        stride, side = self.config.temporal_stride, self.config.spatial_stride
        pieces, shape, itemsize = peek(pieces, "latents")
        plan = streaming or choose_streaming(
            None,
            shape[3] * side,
            shape[4] * side,
            channels=max(self.config.widths[:2]),
            itemsize=itemsize,
            stride=stride,
        )
        count = self.chunk_frames(plan) // stride
        cache = None
        for latents in rechunk(pieces, count, count):
            video, cache = self.decode_chunk(
                latents, cache, denormalize=denormalize, streaming=plan
            )
            yield video

    def normalize(self, latents: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """Latents with zero mean and unit standard deviation per channel."""
        mean, std = (
            rearrange(s, "c -> 1 c 1 1 1").to(latents) for s in (self.latent_mean, self.latent_std)
        )
        return (latents - mean) / std

    def denormalize(self, latents: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        """The inverse of `normalize`."""
        mean, std = (
            rearrange(s, "c -> 1 c 1 1 1").to(latents) for s in (self.latent_mean, self.latent_std)
        )
        return latents * std + mean

    @torch.inference_mode()
    def fit_latent_statistics(self, clips: Iterable[Float[Tensor, "_b 3 _T _H _W"]]) -> None:
        """Measures mean and standard deviation of each latent channel in one streaming pass.

        Args:
            clips: batches of clips as for `encode`.

        Raises:
            ValueError: if there are no clips, or a channel does not vary.
        """
        count = 0
        mean = torch.zeros(self.config.latent_channels, dtype=torch.float64)
        squares = torch.zeros_like(mean)  # of the distances from the mean
        for video in clips:
            latents = rearrange(self.encode(video), "b c t h w -> c (b t h w)").double().cpu()
            variance, centre = torch.var_mean(latents, dim=1, correction=0)
            total = count + latents.shape[1]
            squares += latents.shape[1] * (variance + (centre - mean).square() * count / total)
            mean += (centre - mean) * latents.shape[1] / total
            count = total
        if not count:
            raise ValueError("no clips to measure latent statistics on; pass at least one batch")
        std = (squares / count).sqrt()
        if not bool((std > 1e-6).all()):
            flat = (std <= 1e-6).nonzero().flatten().tolist()
            raise ValueError(
                f"latent channels {flat} do not vary over the {count} measured positions; "
                "train the tokenizer, or measure on clips that differ"
            )
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)

    def finish(self, latents: Tensor, normalize: bool) -> Tensor:
        """Quantises where the configuration says so, and normalises."""
        if self.config.quantizer == "lfq":
            latents = quantize(latents)
        return self.normalize(latents) if normalize else latents

    def plan(
        self,
        shape: Sequence[int],
        itemsize: int,
        channels: int,
        streaming: Streaming | None,
    ) -> Streaming:
        """What was asked for, or what fits, for a clip of `shape` (frames, height, width).

        Raises:
            ValueError: if pieces were asked for together with a gradient.
        """
        if torch.is_grad_enabled():
            if streaming not in (None, WHOLE):
                raise ValueError(
                    "a clip cannot be cut into pieces while gradients are recorded; call it under "
                    "torch.no_grad(), or without streaming"
                )
            return WHOLE
        plan = streaming or choose_streaming(
            *shape, channels=channels, itemsize=itemsize, stride=self.config.temporal_stride
        )
        if plan.frames and plan.frames < shape[0] - 1:
            return plan
        # One chunk, which may still be limited in rows.
        limited = bool(plan.rows or plan.cache_device)
        return dataclasses.replace(plan, frames=shape[0] - 1 if limited else 0)

    def chunk_frames(self, streaming: Streaming) -> int:
        """Frames of a chunk of a stream, where there is always a limit.

        Raises:
            ValueError: if they are no multiple of the time stride.
        """
        stride = self.config.temporal_stride
        if streaming.frames % stride:
            raise ValueError(
                f"streaming in chunks of {streaming.frames} frames gives no whole latents: "
                f"expected a multiple of {stride} frames"
            )
        return streaming.frames or max(MAX_CHUNK, stride)

    def check_frames(self, video: Tensor) -> None:
        """Checks frame size and pixels; see `encode`."""
        geometry.latent_size(video.shape[3], video.shape[4], self.config.spatial_stride)
        assert_finite_pixels(video)

    def check_latents(self, latents: Tensor) -> None:
        """Checks the shape; see `decode`."""
        if latents.shape[1] != self.config.latent_channels or not latents.numel():
            raise ValueError(
                f"latents of shape {tuple(latents.shape)} must be (b, "
                f"{self.config.latent_channels}, t, h, w) with no empty axis"
            )

    def video_shape(self, latents: Tensor) -> tuple[int, int, int]:
        """Frames, height and width that latents decode to."""
        side = self.config.spatial_stride
        frames = geometry.num_frames(latents.shape[2], self.config.temporal_stride)
        return frames, latents.shape[3] * side, latents.shape[4] * side


def peek(pieces: Iterable[Tensor], what: str) -> tuple[Iterator[Tensor], torch.Size, int]:
    """The pieces that are not empty, with the shape and the bytes per number of the first.

    Raises:
        ValueError: if there is none.
    """
    pieces = (piece for piece in pieces if piece.shape[2])
    first = next(pieces, None)
    if first is None:
        raise ValueError(f"there are no {what}; pass at least one piece")
    return itertools.chain([first], pieces), first.shape, first.element_size()
