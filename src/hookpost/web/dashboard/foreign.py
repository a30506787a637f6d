"""What others wrote, as text that shows what it is: nothing in it acts on the page, the terminal or the reading order.

HTML is the template's affair (it escapes everything). Here are the characters that would still do something where they
are only shown: controls (ANSI sequences begin with one), marks that turn the reading direction (CVE-2021-42574,
"Trojan Source"), characters without a width, lone surrogates. They are shown by their names, as JSON spells them. Pure.
"""

from __future__ import annotations

import re

# Longer texts are cut where they are shown; their whole is a download. More than that nobody reads in a page, and to
# lay out a line of a mebibyte takes a browser seconds.
SHOWN_CHARS_MAX = 64 * 1024
# Joiners stay: scripts and emoji need them, and they move nothing.
_ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\u3164\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """The text with every character that would act, or be nothing to see, shown by its name; CRLF is a line end."""
    if text.isascii() and text.isprintable():
        return text
    return _ACTING.sub(_named, text.replace("\r\n", "\n"))


def readable(raw: bytes) -> str:
    """Bytes that ought to be text; what is not UTF-8 is shown byte by byte."""
    return raw.decode("utf-8", "backslashreplace")


def cut(text: str, chars_max: int = SHOWN_CHARS_MAX) -> tuple[str, int]:
    """The part that is shown and how many characters are left out."""
    return text[:chars_max], max(0, len(text) - chars_max)


def _named(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x20 else f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
