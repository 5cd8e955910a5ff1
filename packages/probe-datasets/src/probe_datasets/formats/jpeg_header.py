"""What stands before a JPEG's pixels and has no part in them: EXIF, previews, profiles, comments.

Files in the large data sets have EXIF of every kind of damage, over which decoders complain. It
says nothing of the pixels, so it is taken off before they are decoded.

Reference:
    ITU-T T.81, annex B.2.4.6 (application data); its fields 0 and 14 are those of JFIF and Adobe,
    which say how colours are stored.
"""

__all__ = ["without_metadata"]

_COLOUR = (0xE0, 0xEE)
_FIELDS = range(0xE0, 0xF0)
_COMMENT = 0xFE
_TABLES = (0xC4, 0xCC, 0xDB, 0xDD)  # which may stand among the fields
_MAX_SEGMENTS = 10_000


def without_metadata(data: bytes) -> bytes:
    """A JPEG without the application data and comments that have no part in its pixels.

    Args:
        data: the encoded picture. From where its header cannot be followed it stays as it is.
    """
    parts, kept, position = [], 0, 2
    for _ in range(_MAX_SEGMENTS):
        head = data[position : position + 4]
        end = position + 2 + int.from_bytes(head[2:])
        if len(head) < 4 or head[0] != 0xFF or end < position + 4 or end > len(data):
            break
        if head[1] == _COMMENT or (head[1] in _FIELDS and head[1] not in _COLOUR):
            parts.append(data[kept:position])
            kept = end
        elif head[1] not in (*_COLOUR, *_TABLES):
            break
        position = end
    return b"".join((*parts, data[kept:])) if parts else data
