"""Where a token is: tables of positions, and of offsets between the tokens of a window.

Axes: t h w grid or window, n tokens of a window, m heads, d width, b batch, k head width.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from walt_core.ops.window import Window

FLASH_MULTIPLE = 8  # flash-attn takes head widths that are multiples of it


class PositionEmbedding(nn.Module):
    """Learned space and time tables, summed; other grid sizes interpolate them.

    The model that holds it draws its values.

    Reference: WALT, Sec. 3.2; an image uses time slot 0.
    """

    def __init__(self, latent_size: Window, width: int) -> None:
        super().__init__()
        self.latent_size = latent_size
        t, h, w = latent_size
        self.space = nn.Parameter(torch.zeros(h * w, width))
        self.time = nn.Parameter(torch.zeros(t, width))

    def forward(self, grid: Window) -> Float[Tensor, "t h w d"]:
        """Embedding of every position of a grid (t, h, w)."""
        t, h, w = self.latent_size
        space = rearrange(self.space, "(h w) d -> 1 d h w", h=h)
        if grid[1:] != (h, w):
            space = F.interpolate(space, grid[1:], mode="bicubic", align_corners=False)
        time = self.time
        if grid[0] == 1:
            time = time[:1]
        elif grid[0] != t:
            time = F.interpolate(
                rearrange(time, "t d -> 1 d t"), grid[0], mode="linear", align_corners=True
            )
            time = rearrange(time, "1 d t -> t d")
        return rearrange(time, "t d -> t 1 1 d") + rearrange(space, "1 d h w -> 1 h w d")


def offsets(size: int, device: torch.device) -> Int[Tensor, "{size} {size}"]:
    """Row of a table of `2 size - 1` offsets for each pair of places on an axis."""
    places = torch.arange(size, device=device)
    return places[:, None] - places[None] + size - 1


class JointPositionBias(nn.Module):
    """Learned logit bias for every offset (t, h, w) between two tokens of a window.

    Windows of other sizes interpolate the table, the ends and the middle of each axis staying what
    they are.

    Reference: Swin Transformer (Liu et al., 2021), Sec. 3.2, extended to time; the joint table
        reproduces the rank sweep of WALT, Table 2.
    """

    def __init__(self, window: Window, num_heads: int) -> None:
        super().__init__()
        self.spans = tuple(2 * size - 1 for size in window)
        self.table = nn.Parameter(torch.zeros(math.prod(self.spans), num_heads))

    def forward(self, window: Window) -> Float[Tensor, "m n n"]:
        """Bias of the logits of two tokens, for a window (t, h, w)."""
        t, h, w = self.spans
        table = rearrange(self.table, "(t h w) m -> m t h w", t=t, h=h, w=w)
        spans = tuple(2 * size - 1 for size in window)
        for axis, span in enumerate(spans, start=1):
            if span == 1:  # Offset 0, where interpolation would take an end.
                table = table.narrow(axis, table.shape[axis] // 2, 1)
        if spans != table.shape[1:]:
            table = F.interpolate(table[None], spans, mode="trilinear", align_corners=True).squeeze(
                0
            )
        rows = [offsets(size, table.device) for size in window]
        # One flat index is gathered 8 times as fast as one for each axis.
        place = (
            rearrange(rows[0], "t t2 -> t 1 1 t2 1 1") * (spans[1] * spans[2])
            + rearrange(rows[1], "h h2 -> 1 h 1 1 h2 1") * spans[2]
            + rearrange(rows[2], "w w2 -> 1 1 w 1 1 w2")
        )
        bias = rearrange(table, "m t h w -> m (t h w)").index_select(1, place.flatten())
        return rearrange(bias, "m (n s) -> m n s", n=math.prod(window))


class AxialPositionBias(nn.Module):
    """Learned logit bias as a sum of one table for each axis of a window.

    Kernels that take no bias get it inside longer queries and keys (`fold`). Windows of other
    sizes interpolate the tables, their ends and middle staying what they are.
    """

    def __init__(self, window: Window, num_heads: int) -> None:
        super().__init__()
        self.tables = nn.ParameterList(
            nn.Parameter(torch.zeros(2 * size - 1, num_heads)) for size in window
        )

    def axes(self, window: Window) -> list[Float[Tensor, "m q s"]]:
        """Bias of two places on each axis, query before key."""
        parts = []
        for table, size in zip(self.tables, window, strict=True):
            if size == 1:  # Offset 0, where interpolation would take an end.
                table = table[table.shape[0] // 2, None]
            elif table.shape[0] != 2 * size - 1:
                table = F.interpolate(
                    rearrange(table, "t m -> 1 m t"),
                    2 * size - 1,
                    mode="linear",
                    align_corners=True,
                )
                table = rearrange(table, "1 m t -> t m")
            parts.append(rearrange(table, "t m -> m t")[:, offsets(size, table.device)])
        return parts

    def forward(self, window: Window) -> Float[Tensor, "m n n"]:
        """Bias of the logits of two tokens, for a window (t, h, w)."""
        t, h, w = self.axes(window)
        bias = (
            rearrange(t, "m t t2 -> m t 1 1 t2 1 1")
            + rearrange(h, "m h h2 -> m 1 h 1 1 h2 1")
            + rearrange(w, "m w w2 -> m 1 1 w 1 1 w2")
        )
        return rearrange(bias, "m t h w t2 h2 w2 -> m (t h w) (t2 h2 w2)")

    def fold(
        self,
        q: Float[Tensor, "b m n k"],
        k: Float[Tensor, "b m n k"],
        v: Float[Tensor, "b m n k"],
        window: Window,
    ) -> tuple[Float[Tensor, "b m n k2"], Float[Tensor, "b m n k2"], Float[Tensor, "b m n k2"]]:
        """Longer queries and keys whose products are the logits, bias included.

        A query gets its row of each axis' bias, a key the one-hot vectors of its place; a sum of
        products then picks `bias_t[ti, tj] + bias_h[hi, hj] + bias_w[wi, wj]`. Zeros fill all
        three up to the multiple of 8 that flash-attn wants.

        Args:
            q: queries, scaled.
            k: keys.
            v: values.
            window: (t, h, w), whose product is n.

        Returns:
            Queries, keys and values for attention with scale 1; of its output only the first k
            channels are to be kept.
        """
        t, h, w = window
        rows = [
            repeat(part, pattern, t=t, h=h, w=w)
            for part, pattern in zip(
                self.axes(window),
                ("m t s -> m (t h w) s", "m h s -> m (t h w) s", "m w s -> m (t h w) s"),
                strict=True,
            )
        ]
        places = [
            repeat(torch.eye(size, device=k.device), pattern, t=t, h=h, w=w)
            for size, pattern in zip(
                window, ("t s -> (t h w) s", "h s -> (t h w) s", "w s -> (t h w) s"), strict=True
            )
        ]
        batch, missing = q.shape[0], -(q.shape[-1] + sum(window)) % FLASH_MULTIPLE
        query = repeat(torch.cat(rows, dim=-1), "m n s -> b m n s", b=batch).to(q)
        key = repeat(torch.cat(places, dim=-1), "n s -> b m n s", b=batch, m=q.shape[1]).to(k)
        q, k = (F.pad(torch.cat(pair, dim=-1), (0, missing)) for pair in ((q, query), (k, key)))
        return q, k, F.pad(v, (0, q.shape[-1] - v.shape[-1]))
