"""A list as one file: read in steps, and sent as it is read."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec
from fastapi import Response
from fastapi.responses import StreamingResponse

from hookpost.storage.contract import Page
from hookpost.web.api import ListQuery
from hookpost.web.problems import invalid

# Rows between two questions to the store.
EXPORT_ROWS = 1_000
MEDIA_TYPES = {"csv": "text/csv; charset=utf-8", "ndjson": "application/x-ndjson"}

Fetch = Callable[[tuple[Any, ...] | None, int], Awaitable[Page]]
Show = Callable[[Mapping[str, Any]], dict[str, Any]]


def described(*formats: Literal["csv", "ndjson"]) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI document says of a route that answers in these formats, too."""
    return {200: {"content": {MEDIA_TYPES[each].partition(";")[0]: {} for each in formats}}}


async def exported(
    query: ListQuery,
    fetch: Fetch,
    show: Show,
    *,
    name: str,
    format: Literal["csv", "ndjson"],
    columns: Sequence[str] = (),
) -> Response:
    """All rows of a list, to be kept as ``name``; ``columns``: of a CSV, in their order.

    Raises Problem 422 for a query that asks for a page.
    """
    for parameter in ("limit", "cursor"):
        if parameter in query.model_fields_set:
            raise invalid(parameter, f"is for format=json: {format} has no pages")
    # Before the answer begins, so that what goes wrong can be told.
    page = await fetch(None, EXPORT_ROWS)

    async def lines() -> AsyncIterator[bytes]:
        nonlocal page
        if format == "csv":
            yield ",".join(columns).encode() + b"\r\n"
        while True:
            items = [show(row) for row in page.rows]
            yield _csv(items, columns) if format == "csv" else _ndjson(items)
            if page.next_key is None:
                return
            page = await fetch(page.next_key, EXPORT_ROWS)

    disposition = f'attachment; filename="{name}.{format}"'
    return StreamingResponse(lines(), media_type=MEDIA_TYPES[format], headers={"Content-Disposition": disposition})


def _csv(items: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> bytes:
    """RFC 4180; truth as it is in JSON."""
    text = io.StringIO(newline="")
    words = {True: "true", False: "false"}
    csv.DictWriter(text, columns).writerows(
        {name: words[value] if isinstance(value, bool) else value for name, value in item.items()} for item in items
    )
    return text.getvalue().encode()


def _ndjson(items: Sequence[Mapping[str, Any]]) -> bytes:
    return b"".join(msgspec.json.encode(item) + b"\n" for item in items)
