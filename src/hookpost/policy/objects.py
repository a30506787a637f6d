"""How the objects of the payload store are named.

An event's object stands in a folder of the hour in which its id was minted, a segment (many cold payloads of one day)
in one of the hour in which it was put: all that a sweep must know stands in the name, and a listing of one folder is
complete and bounded. Names of segments are short, as they stand in the row of each event.
"""

from __future__ import annotations

import re
from uuid import UUID

from hookpost.model import minted_at

HOUR_S = 3600
_SEGMENT = re.compile(r"cold/\d+/\d+")


def minted_hour(event_id: UUID) -> int:
    """The hour (since 1970) in a UUIDv7."""
    return int(minted_at(event_id)) // HOUR_S


def hour_folder(hour: int) -> str:
    """Where the objects of events lie whose ids were minted in this hour (since 1970)."""
    day, hour_of_day = divmod(hour, 24)
    return f"events/{day}/{hour_of_day:02}"


def object_key(event_id: UUID) -> str:
    """The name of an event's object."""
    return f"{hour_folder(minted_hour(event_id))}/{event_id.hex}"


def event_of(key: str) -> UUID | None:
    """Whose object it is; None for a name that is not an event's."""
    try:
        event_id = UUID(key.rpartition("/")[2])
    except ValueError:
        return None
    return event_id if object_key(event_id) == key else None


def segment_folder(hour: int) -> str:
    """Where the segments lie that were put in this hour (since 1970)."""
    return f"cold/{hour}"


def segment_key(hour: int, number: int) -> str:
    """The name of a segment; its number is given once."""
    return f"{segment_folder(hour)}/{number}"


def is_segment(key: str) -> bool:
    """Is it the name of a segment?"""
    return _SEGMENT.fullmatch(key) is not None
