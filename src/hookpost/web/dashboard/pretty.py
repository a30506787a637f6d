"""JSON, indented for reading, with every token as it was posted: 1.50 stays 1.50, 1e3 stays 1e3, keys keep their order.

A parser would round numbers and turn escapes into what they stand for, and a reader looks for why a signature does not
match. So only white space between tokens changes. Pure.
"""

from __future__ import annotations

import re

_PIECE = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+|"', re.DOTALL)
# Deeper levels are not indented further: a nest of a thousand levels would be white space for the most part.
LEVELS_MAX = 32
_INDENT = "  "


def pretty(text: str, chars_max: int) -> str:
    """The text indented; ends after about ``chars_max`` characters."""
    parts: list[str] = []
    level, length, opened = 0, 0, False
    for match in _PIECE.finditer(text):
        piece = match[0]
        if piece in "}]":
            level = max(0, level - 1)
            part = piece if opened else _line(level) + piece
        elif piece == ",":
            part = "," + _line(level)
        elif piece == ":":
            part = ": "
        else:
            part = _line(level) + piece if opened else piece
        opened = piece in "{["
        if opened:
            level += 1
        parts.append(part)
        length += len(part)
        if length > chars_max:
            break
    return "".join(parts)


def _line(level: int) -> str:
    return "\n" + _INDENT * min(level, LEVELS_MAX)
