"""The HTTP client of the commands: HOOKPOST_URL and HOOKPOST_API_KEY, JSON in, JSON out."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Mapping
from typing import Any, TypeAlias
from urllib.parse import urlencode, urlsplit

# A parameter of a URL; None is left out.
Asked: TypeAlias = str | float | None

DEFAULT_URL = "http://127.0.0.1:8080"
# Longer than the server's own limits on a request.
TIMEOUT_S = 30.0


class ClientError(Exception):
    """The request failed; the text is for the person at the terminal."""


class Client:
    """One server and one key."""

    def __init__(self, url: str | None = None, key: str | None = None, *, tenant: str | None = None) -> None:
        self._url = urlsplit(url or os.environ.get("HOOKPOST_URL") or DEFAULT_URL)
        self._key = key or os.environ.get("HOOKPOST_API_KEY")
        self._tenant = tenant or os.environ.get("HOOKPOST_TENANT_ID")

    def call(self, method: str, path: str, body: Any = None, *, raw: bytes | None = None, **query: Asked) -> Any:
        """One request; the decoded answer. Raises ClientError for everything that is not a 2xx."""
        payload = raw if raw is not None else None if body is None else json.dumps(body).encode()
        return _read(*self._ask(method, path, payload, query))

    def text(self, path: str, **query: Asked) -> str:
        """An answer that is no JSON. Raises ClientError for everything that is not a 2xx."""
        status, answer = self._ask("GET", path, None, query)
        if not 200 <= status < 300:
            _read(status, answer)
        return answer.decode()

    def _ask(self, method: str, path: str, payload: bytes | None, query: Mapping[str, Asked]) -> tuple[int, bytes]:
        if self._key is None:
            raise ClientError(
                "set HOOKPOST_API_KEY to a key of the server (`hookpost serve` prints one at first start)"
            )
        headers = {"authorization": f"Bearer {self._key}", "content-type": "application/json"}
        if self._tenant is not None:
            headers["x-tenant-id"] = self._tenant
        asked = {name: value for name, value in query.items() if value is not None}
        target = self._url.path.rstrip("/") + path + ("?" + urlencode(asked) if asked else "")
        connect = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        connection = connect(self._url.hostname or "", self._url.port, timeout=TIMEOUT_S)
        try:
            connection.request(method, target, payload, headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            where = f"{self._url.scheme}://{self._url.netloc}"
            raise ClientError(f"{where} does not answer ({error}): is the server running? Set HOOKPOST_URL") from error
        finally:
            connection.close()


def _read(status: int, answer: bytes) -> Any:
    try:
        decoded = json.loads(answer) if answer else None
    except ValueError:
        decoded = None
    if 200 <= status < 300:
        return decoded
    if not isinstance(decoded, dict):
        raise ClientError(f"the server answered {status}")
    faults = [f"\n  {fault.get('field')}: {fault.get('message')}" for fault in decoded.get("errors", [])]
    raise ClientError(f"{status} {decoded.get('title', '')}: {decoded.get('detail', '')}{''.join(faults)}")
