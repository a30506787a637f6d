"""Templates into pages: everything is escaped, and everything that others wrote is text (see `foreign`)."""

from __future__ import annotations

import asyncio
import re
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from hookpost.web import shown
from hookpost.web.dashboard import foreign, words

# Of whoever has waited for the server to start.
_ASKED_FOR_FIRST = ("sign_in.html", "layout.html", "parts.html", "overview.html", "event.html", "endpoint.html")
_IDS = re.compile(r"\b(evt|ep)_[0-9a-f]{32}\b")
_LISTED = re.compile(r"(\w+)\.(\d{1,4})")
STATIC_TYPES: Mapping[str, str] = {
    "dashboard.css": "text/css; charset=utf-8",
    "dashboard.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


@cache
def static_file(name: str) -> tuple[bytes, str]:
    """One of our own files and a print of its content, that its URL carries: a new one is a new URL."""
    content = files("hookpost.web.dashboard").joinpath("static", name).read_bytes()
    return content, urlsafe_b64encode(sha256(content).digest()[:9]).decode()


def static_url(name: str) -> str:
    """Where a file is, for as long as it is this one."""
    return f"/dashboard/static/{name}?v={static_file(name)[1]}"


def ago(seconds: float) -> str:
    """A duration in the two units, or one, that matter."""
    seconds = abs(seconds)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.0f} s"
    for unit_s, unit, part_s, part in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if seconds >= unit_s:
            whole, rest = divmod(seconds, unit_s)
            left = int(rest // part_s)
            return f"{int(whole)} {unit}" + (f" {left} {part}" if left and whole < 10 else "")
    return "now"


def duration(seconds: float) -> str:
    """A setting in seconds, as a person would say it."""
    for unit_s, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= unit_s and seconds % unit_s == 0:
            return f"{seconds / unit_s:g} {unit}"
    return f"{seconds:g} s"


def milliseconds(value: float | None) -> str:
    """A latency with three digits that matter; from a minute on in the units of a clock."""
    if value is None:
        return "–"
    if not value:
        return "< 1 ms"
    if value < 10:
        return f"{value:.1f} ms" if value % 1 else f"{value:.0f} ms"
    if value < 1000:
        return f"{value:.0f} ms"
    if value < 60_000:
        return f"{value / 1000:.2f} s" if value < 10_000 else f"{value / 1000:.0f} s"
    return ago(value / 1000)


def count(value: float) -> str:
    """A number of things: thousands are set apart."""
    return f"{int(value):,}".replace(",", "\u202f")


def size(value: float) -> str:
    """Bytes, in units of 1024."""
    if value < 1024:
        return f"{int(value)} B"
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{value / 1024:.1f} TiB"


def percent(part: float, whole: float) -> str:
    """A share; what is not quite all never reads 100 %."""
    if not whole:
        return "–"
    value = 100 * part / whole
    if value == 100 or value == 0:
        return f"{value:.0f} %"
    return f"{min(value, 99.99):.2f} %" if value > 99 else f"{value:.1f} %"


def with_query(path: str, **changes: Any) -> str:
    """A path with these parameters; None leaves one out."""
    given = {name.rstrip("_"): value for name, value in changes.items() if value not in (None, "")}
    return f"{path}?{urlencode(given)}" if given else path


def _finalize(value: Any) -> Any:
    return foreign.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _joined(values: Iterable[object], between: str) -> str:
    """Jinja2's own would call the result safe, and so keep it from `_finalize`."""
    return between.join(map(str, values))


def indented(value: Any) -> str:
    """A document as JSON, for reading."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _date(text: str | None) -> str:
    return "" if text is None else f"{text[:10]} {text[11:19]}"


def exact(text: str | None) -> str:
    """An RFC 3339 time to the millisecond, as attempts of one event are apart by that."""
    return "" if text is None else f"{text[:10]} {text[11:23]}"


def sentence(text: str) -> str:
    """What the API says of a problem, as it stands on a page; a field has the name that it has there."""
    field, colon, rest = text.partition(": ")
    listed = _LISTED.fullmatch(field)  # one of several, counted from 0
    name, which = (listed[1], f", no. {int(listed[2]) + 1}") if listed else (field, "")
    if colon and (name in words.FIELDS or listed):
        text = f"{words.FIELDS.get(name, name)}{which}: {rest}"
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def coded(text: str) -> Markup:
    """A sentence of ours whose `commands` stand out."""
    parts = (escape(foreign.visible(part)) for part in text.split("`"))
    return Markup("").join(Markup("<code>{}</code>").format(part) if at % 2 else part for at, part in enumerate(parts))


def linked(text: str) -> Markup:
    """A sentence of ours; events and endpoints that it names can be followed."""
    shown, done = Markup(""), 0
    for found in _IDS.finditer(text):
        page = "events" if found[1] == "evt" else "endpoints"
        link = Markup('<a class="id" href="/dashboard/{0}/{1}">{1}</a>').format(page, found[0])
        shown += escape(foreign.visible(text[done : found.start()])) + link
        done = found.end()
    return shown + escape(foreign.visible(text[done:]))


@cache
def _environment() -> Environment:
    """Jinja2 as the dashboard uses it; one for all applications of a process, as templates take time to compile."""
    environment = Environment(
        loader=PackageLoader("hookpost.web.dashboard"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters.update(
        ago=ago,
        ms=milliseconds,
        count=count,
        size=size,
        duration=duration,
        date=_date,
        exact=exact,
        coded=coded,
        linked=linked,
        sentence=sentence,
        path=quote,
        join=_joined,
        json=indented,
    )
    environment.globals.update(
        words=words, static_url=static_url, with_query=with_query, percent=percent, show_time=shown.show_time
    )
    return environment


def page(template: str, **values: Any) -> bytes:
    """The page as UTF-8."""
    return _environment().get_template(template).render(values).encode("utf-8", "replace")


async def compile_templates() -> None:
    """Compile all of them beside what else there is to do: otherwise whoever asks for a page first waits for that."""
    for name in dict.fromkeys((*_ASKED_FOR_FIRST, *_environment().list_templates())):
        await asyncio.to_thread(_environment().get_template, name)
