"""An attempt's time, phase by phase, as bars. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# The bars' own width; the drawing is scaled to the page's.
WIDTH = 1000


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase: its words, when it began and ended (milliseconds from the start), and where its bar is."""

    name: str
    words: str
    from_ms: int
    to_ms: int
    x: float
    width: float

    @property
    def ms(self) -> int:
        """How long it took."""
        return self.to_ms - self.from_ms


_PHASES = (
    ("dns", "dns", "Name looked up"),
    ("connect", "connect", "Connected"),
    ("tls", "tls", "TLS handshake"),
    ("wait", "first_byte", "Waited for the answer"),
    ("body", "total", "Answer received"),
)

_IN_VAIN = ("wait", "total", "Waited in vain")


def phases(timings: Mapping[str, Any], scale_ms: int) -> Sequence[Phase]:
    """The phases that took time; libcurl counts each from the start, and leaves 0 where one did not happen."""
    found: list[Phase] = []
    before = 0
    total = max(1, scale_ms)
    answered = timings["first_byte"] > 0
    for name, key, words in _PHASES if answered else (*_PHASES[:3], _IN_VAIN):
        end = int(timings[key])
        if end <= before:
            continue
        found.append(Phase(name, words, before, end, before / total * WIDTH, (end - before) / total * WIDTH))
        before = end
    return found
