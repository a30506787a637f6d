"""An endpoint's own headers as lines of a form, and a form's lines as the change that the API takes. Pure.

Values of secrets are never shown: a line with the mask keeps the value as it is, a line that is gone takes the header
away, and a secret is set in a field of its own that is always empty when a page is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hookpost.policy.headers import MASK, holds_a_secret


class LineError(ValueError):
    """A line that is no header, or a name that stands there twice; the text says which."""


def parse(text: str) -> dict[str, str]:
    """Lines ``name: value`` by name in lower case; empty lines are passed over. Raises LineError."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        name, colon, value = line.partition(":")
        key = name.strip().lower()
        if not colon or not key:
            raise LineError(f"headers, line {number}: write the name, a colon and the value, such as X-Team: payments")
        if key in found:
            raise LineError(f"headers, line {number}: {key} is given twice")
        found[key] = value.strip()
    return found


def change(plain: str | None, secret: str, current: Mapping[str, str]) -> dict[str, Any]:
    """What a form changes of the headers that there are (secrets masked, as the API shows them).

    ``plain``: the field in which they are all told, None where the form does not have it; ``secret``: new values of
    secrets. A header that is a secret stays one, whichever field its new value comes from. Raises LineError.
    """
    told = dict(current) if plain is None else parse(plain)
    changed: dict[str, Any] = {name: None for name in current if name not in told}
    for name, value in told.items():
        # A mask where there is no secret is passed on: the API says what is wrong with it.
        if name not in current or value != current[name]:
            changed[name] = {"value": value, "secret": current.get(name) == MASK}
    for name, value in parse(secret).items():
        changed[name] = {"value": value, "secret": True}
    return changed


def lines(headers: Mapping[str, str]) -> str:
    """The field that tells them all; ``headers`` as the API shows them."""
    return "\n".join(f"{name}: {value}" for name, value in headers.items())


def again(plain: str, current: Mapping[str, str]) -> str:
    """The field of a form that was refused, without what may be a secret: its value has to be entered again."""
    kept = []
    for line in plain.splitlines():
        name, colon, value = line.partition(":")
        key = name.strip().lower()
        hidden = colon and value.strip() != MASK and (holds_a_secret(key) or current.get(key) == MASK)
        kept.append(f"{name}: " if hidden else line)
    return "\n".join(kept)
