"""The listener of the page of metrics: a few lines of HTTP/1.1 for a scraper, and nothing else behind the port."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from functools import partial
from http import HTTPStatus

from hookpost.exposition import Metrics

# A scraper's request is one short head; who sends more, or takes longer, is none.
HEAD_BYTES_MAX = 8 * 1024
REQUEST_S_MAX = 5.0


@contextlib.asynccontextmanager
async def listening(address: str | None, metrics: Metrics) -> AsyncIterator[None]:
    """Serve the page at ``host:port`` meanwhile; None: nowhere. Raises OSError with what to do."""
    if address is None:
        yield
        return
    host, _, port = address.rpartition(":")
    try:
        server = await asyncio.start_server(
            partial(_answer, metrics), host.strip("[]"), int(port), limit=HEAD_BYTES_MAX
        )
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise OSError(error.errno, f"cannot listen on {address} for metrics: {reason}; set METRICS_LISTEN") from error
    try:
        yield
    finally:
        server.close()


async def _answer(metrics: Metrics, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        async with asyncio.timeout(REQUEST_S_MAX):
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(await _response(metrics, head.decode("latin-1").split("\r\n")))
            await writer.drain()
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass  # nobody who scrapes
    finally:
        writer.close()


async def _response(metrics: Metrics, lines: list[str]) -> bytes:
    method, _, rest = lines[0].partition(" ")
    path = rest.partition(" ")[0].partition("?")[0]
    if path != "/metrics":
        return _whole(HTTPStatus.NOT_FOUND, b"the page is at /metrics\n")
    if method not in ("GET", "HEAD"):
        return _whole(HTTPStatus.METHOD_NOT_ALLOWED, b"GET it\n")
    accept = next((line.partition(":")[2].strip() for line in lines if line.lower().startswith("accept:")), "")
    page, media_type = await metrics.page(accept)
    return _whole(HTTPStatus.OK, page, media_type, cut=method == "HEAD")


def _whole(
    status: HTTPStatus, body: bytes, media_type: str = "text/plain; charset=utf-8", *, cut: bool = False
) -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: {media_type}\r\ncontent-length: {len(body)}\r\n"
        "connection: close\r\n\r\n"
    )
    return head.encode() + (b"" if cut else body)
