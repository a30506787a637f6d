"""Forms as browsers send them: read with a limit, every field once unless it is a list."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

from hookpost.web.problems import refusal

# The verifier takes a body of the size that events may have by default, and percent-encoding takes three for one.
FORM_BYTES_MAX = 4 * 1024 * 1024
FORM_S_MAX = 30.0
# A browser that is answered while it still sends tells its user that the connection was cut, and not the answer. So
# what is too much is taken and thrown away, up to here.
FORM_BYTES_TAKEN_MAX = 8 * FORM_BYTES_MAX
FIELDS_MAX = 1_200
MEDIA_TYPE = b"application/x-www-form-urlencoded"


class Form:
    """The fields of a form or of a URL."""

    def __init__(self, fields: Mapping[str, list[str]]) -> None:
        self._fields = fields

    @classmethod
    def parse(cls, text: str) -> Form:
        """Problem 400 for what is none."""
        try:
            return cls(parse_qs(text, keep_blank_values=True, max_num_fields=FIELDS_MAX, errors="replace"))
        except ValueError as error:
            raise refusal(400, "the form cannot be read") from error

    def text(self, name: str) -> str:
        """A field without the blanks around it; empty when it is missing."""
        return self.raw(name).strip()

    def raw(self, name: str) -> str:
        """A field as it was sent."""
        return self._fields.get(name, [""])[0]

    def optional(self, name: str) -> str | None:
        """A field, None when it is empty or missing."""
        return self.text(name) or None

    def number(self, name: str) -> float | None:
        """A number, None when it is empty; Problem 422 for anything else."""
        text = self.text(name)
        if not text:
            return None
        try:
            value = float(text)
        except ValueError as error:
            raise refusal(422, f"{name}: must be a number") from error
        return value

    def whole(self, name: str) -> int | None:
        """A whole number, None when it is empty; Problem 422 for anything else."""
        text = self.text(name)
        if not text:
            return None
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise refusal(422, f"{name}: must be a whole number")
        return int(text)

    def is_set(self, name: str) -> bool:
        """A check box."""
        return bool(self.text(name))

    def all(self, name: str) -> list[str]:
        """A field that may be there several times."""
        return self._fields.get(name, [])


def not_json(error: Exception) -> str:
    """What is wrong with a text that was to be JSON, behind the words that it is none."""
    return str(error).removeprefix("JSON is malformed: ")


async def read_form(headers: Mapping[bytes, bytes], receive: Callable[[], Awaitable[Any]]) -> Form:
    """The form in a request's body, within the limits."""
    if headers.get(b"content-type", MEDIA_TYPE).partition(b";")[0].strip().lower() != MEDIA_TYPE:
        raise refusal(415, "send the form as application/x-www-form-urlencoded")
    try:
        async with asyncio.timeout(FORM_S_MAX):
            body = await _body(receive)
    except TimeoutError as error:
        raise refusal(408, f"the form did not arrive within {FORM_S_MAX:g} s") from error
    return Form.parse(body.decode("utf-8", "replace"))


async def _body(receive: Callable[[], Awaitable[Any]]) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise refusal(400, "the form was cut off")
        body = message.get("body", b"")
        size += len(body)
        if size <= FORM_BYTES_MAX:
            parts.append(body)
        if not message.get("more_body") or size > FORM_BYTES_TAKEN_MAX:
            break
    if size > FORM_BYTES_MAX:
        raise refusal(413, f"a form may have {FORM_BYTES_MAX / 2**20:.1f} MiB", headers={"Connection": "close"})
    return b"".join(parts)
