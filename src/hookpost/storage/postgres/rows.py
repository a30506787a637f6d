"""What all queries of the API share: a row or NotFound, pages and their sort keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hookpost.storage.contract import NotFound, Page


def found(row: Any, what: str) -> dict[str, Any]:
    """The row as a dict; raises NotFound for none."""
    if row is None:
        raise NotFound(f"there is no such {what}")
    return dict(row)


def after(key: tuple[Any, ...] | None, length: int) -> tuple[Any, ...]:
    """The sort key to go on behind, as parameters; nulls for the first page."""
    if key is None:
        return (None,) * length
    assert len(key) == length, f"a sort key of {length} values is expected"
    return key


def page(rows: Sequence[Any], limit: int, key: tuple[str, ...]) -> Page:
    """``rows`` is one longer than the page when there are more."""
    kept = [dict(row) for row in rows[:limit]]
    more = len(rows) > limit and kept
    return Page(kept, tuple(kept[-1][column] for column in key) if more else None)
