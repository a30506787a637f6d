"""The dashboard as a client of the API, in the same process: what a page shows or does, a route of the API answers.

So checks, limits, problems and shapes exist once, and a page cannot see what the API would not tell the same principal.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import quote, urlencode

import msgspec

from hookpost.web.auth import Principal

Message: TypeAlias = MutableMapping[str, Any]
AsgiApp: TypeAlias = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


@dataclass(frozen=True, slots=True)
class Refusal(Exception):
    """The API said no; ``problem`` is what it said (RFC 9457)."""

    status: int
    problem: Mapping[str, Any]

    @property
    def text(self) -> str:
        """In words."""
        return str(self.problem.get("detail") or self.problem.get("title") or self.status)


class Asker:
    """Asks one application of the API."""

    def __init__(self, api: AsgiApp) -> None:
        self._api = api

    async def __call__(
        self, principal: Principal, method: str, path: str, *, form: Any = None, **query: Any
    ) -> dict[str, Any]:
        """The answer's document, {} for none; parameters that are None are left out. Raises Refusal."""
        given = {name.rstrip("_"): value for name, value in query.items() if value is not None}
        body = b"" if form is None else msgspec.json.encode(form)
        status, answer = await self._send(principal, method, path, urlencode(given), body)
        document: dict[str, Any] = msgspec.json.decode(answer) if answer else {}
        if status >= 400:
            raise Refusal(status, document)
        return document

    async def _send(self, principal: Principal, method: str, path: str, query: str, body: bytes) -> tuple[int, bytes]:
        status, parts = 500, list[bytes]()

        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                parts.append(message.get("body", b""))

        await self._api(_scope(principal, method, path, query, len(body)), receive, send)
        return status, b"".join(parts)


def _scope(principal: Principal, method: str, path: str, query: str, length: int) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": quote(path).encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % length)],
        "client": None,
        "server": None,
        "state": {},
        "hookpost.principal": principal,
    }
