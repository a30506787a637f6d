"""Bounds on the JSON of a payload that nobody decodes here: how deep it nests and how long its numbers are.

RFC 8259 §9 lets a parser set such limits, and parsers do: what is beyond them reaches a receiver that cannot read it,
or that breaks on it, as a delivery that fails for days. Pure. A small payload cannot be beyond them; others are cleared
by two counts; only what has more brackets than may nest, or is longer than a number may be, is looked at closely.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["JsonBounds"]

# A string, a bracket or a number; in valid JSON nothing else matters here.
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]|[-0-9][-+.0-9eE]*', re.DOTALL)
_OPENING, _CLOSING = b"[{", b"]}"


@dataclass(frozen=True, slots=True)
class JsonBounds:
    """``depth``: arrays and objects inside one another; ``number_chars``: of one number as it is written."""

    depth: int = 256
    number_chars: int = 1024

    def fault(self, payload: bytes) -> str | None:
        """What is beyond the bounds in valid JSON, or None."""
        size = len(payload)
        if size <= 2 * self.depth and size <= self.number_chars:  # each level has two brackets
            return None
        shallow = payload.count(b"[") + payload.count(b"{") <= self.depth
        if shallow and (len(payload) <= self.number_chars or not self._may_hold_a_long_number(payload)):
            return None
        depth = 0
        for match in _TOKEN.finditer(payload):
            token = match[0]
            if token in _OPENING:
                depth += 1
                if depth > self.depth:
                    return f"arrays and objects may nest {self.depth} deep"
            elif token in _CLOSING:
                depth -= 1
            elif len(token) > self.number_chars and not token.startswith(b'"'):
                return f"a number may have {self.number_chars} characters"
        return None

    def _may_hold_a_long_number(self, payload: bytes) -> bool:
        """Of a number that is too long, one character stands at a multiple of the bound: no search is needed."""
        return any(
            character in b"-+.0123456789eE" and self._number_around(payload, at * self.number_chars)
            for at, character in enumerate(payload[:: self.number_chars])
        )

    def _number_around(self, payload: bytes, at: int) -> bool:
        """May a number that is too long go through this place?"""
        window = payload[max(0, at - self.number_chars) : at + self.number_chars + 1]
        return any(len(run) > self.number_chars for run in re.findall(rb"[-+.0-9eE]+", window))
