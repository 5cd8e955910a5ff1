"""Noticing that the compressed data of a JPEG ends too early or too late for its picture.

JPEG has no checksum, and its decoder mends what it can: where the data runs out it paints grey, and
what is left over it throws away. Both mean that bits were lost or changed, so the data is handed
over in a way that lets the caller see either, from about two blocks of 8 x 8 pixels on. What only
changes coefficients stays unseen.

Reference:
    ITU-T T.81, annex B.2 (segments), B.1.1.5 (entropy-coded data), F.1.2.3 (byte stuffing).
"""

import io
import re

__all__ = ["JpegStream", "jpeg_stream"]

# Neither stuffed nor a restart. Without a "+", which would make the search ten times as slow, the
# bytes that may fill the space before a marker are not part of it.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
_BASELINE, _FRAMES, _SCAN = (0xC0, 0xC1), range(0xC0, 0xD0), 0xDA
_NO_FRAMES = (0xC4, 0xC8, 0xCC)
_LOOK_AHEAD = b"\xff\x00" * 8  # bits that a decoder fetches before it needs them; no code of theirs
_TOLERATED = 16  # bytes; some cameras write a few before the end
_MAX_SEGMENTS = 10_000


class JpegStream(io.BytesIO):
    """A JPEG without its end marker, whose last bytes are a read of their own.

    Args:
        data: the picture up to the end of its entropy-coded data.
        begin: where that data begins.
        ended: whether a marker ended it.
    """

    def __init__(self, data: bytes, begin: int, *, ended: bool) -> None:
        # What is cut short must not find in its stead what is only there to be looked at.
        super().__init__(data + _LOOK_AHEAD if ended else data)
        self._last = max(begin, len(data) - _TOLERATED)
        self.exhausted = False
        """Whether the last bytes were asked for, as they are in a sound picture."""

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file, but never across the place where the last bytes begin.

        Args:
            size: bytes wanted; all by default.
        """
        position = self.tell()
        if position >= self._last:
            self.exhausted = True
            return super().read(size)
        left = self._last - position
        return super().read(left if size is None or size < 0 else min(size, left))


def jpeg_stream(data: bytes) -> JpegStream | None:
    """A stream of a picture whose data is one baseline scan; None for any other.

    Args:
        data: the encoded picture.

    Raises:
        ValueError: its restart markers do not count up.
    """
    begin = _scan_start(data)
    if begin is None:
        return None
    marker = _MARKER.search(data, begin)
    end = marker.start() if marker else len(data)
    for i, restart in enumerate(_RESTART.finditer(data, begin, end)):
        if restart[1][0] != 0xD0 + i % 8:
            raise ValueError(f"its restart marker {i} is out of order")
    return JpegStream(data[:end].rstrip(b"\xff"), begin, ended=marker is not None)


def _scan_start(data: bytes) -> int | None:
    """Where the entropy-coded data begins, if all components of the picture are in it."""
    position, components = 2, None
    for _ in range(_MAX_SEGMENTS):
        while data[position + 1 : position + 2] == b"\xff":
            position += 1
        head = data[position : position + 10]
        if len(head) < 10 or head[0] != 0xFF:
            return None
        kind, length = head[1], int.from_bytes(head[2:4])
        if kind in _FRAMES and kind not in _NO_FRAMES:
            if kind not in _BASELINE:
                return None
            components = head[9]
        if kind == _SCAN:
            return position + 2 + length if components == head[4] else None
        position += 2 + length
    return None
