"""Contrast of the style sheet's colours, light and dark, by WCAG 2.2: text 4.5 to 1 (1.4.3), what is pressed, filled in or
plotted 3 to 1 (1.4.11)."""

from __future__ import annotations

import re
from itertools import chain

import pytest

from hookpost.web.dashboard.render import static_file

GROUNDS = ("page", "card", "raised")
TEXT = [
    *((ink, ground) for ink in ("text", "soft", "accent") for ground in GROUNDS),
    *((ink, ground) for ink in ("text", "soft", "accent") for ground in ("good-soft", "busy-soft", "warn-soft", "bad-soft")),
    *((ink, ground) for ink in ("good", "busy", "warn", "bad") for ground in (f"{ink}-soft", *GROUNDS)),
    ("accent-text", "accent"),
]  # fmt: skip
SHAPES = [
    *((f"series-{name}", "card") for name in ("good", "warn", "bad", "line")),
    *((f"phase-{name}", "raised") for name in ("dns", "connect", "tls", "wait", "body")),
    *(("edge", ground) for ground in ("card", "page")),
    ("accent", "page"),
]


def colours() -> dict[str, dict[str, str]]:
    """The sheet's colours by scheme; what dark does not say is as in light."""
    sheet = static_file("dashboard.css")[0].decode()
    light, dark = re.findall(r":root \{(.*?)\}", sheet, re.DOTALL)[:2]
    named = [dict(re.findall(r"--([\w-]+):\s*([^;]+);", part)) for part in (light, dark)]
    return {"light": named[0], "dark": named[0] | named[1]}


def rgb(value: str, palette: dict[str, str]) -> tuple[float, ...]:
    """Red, green and blue from 0 to 1 of a colour, or of a mixture of two."""
    if mixed := re.fullmatch(r"color-mix\(in srgb, var\(--([\w-]+)\) (\d+)%, var\(--([\w-]+)\)\)", value):
        one, other, share = rgb(palette[mixed[1]], palette), rgb(palette[mixed[3]], palette), int(mixed[2]) / 100
        return tuple(a * share + b * (1 - share) for a, b in zip(one, other, strict=True))
    return tuple(int(value[at : at + 2], 16) / 255 for at in (1, 3, 5))


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """From 1 to 21."""
    lights = []
    for colour in (one, other):
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour)
        lights.append(0.2126 * red + 0.7152 * green + 0.0722 * blue)
    return (max(lights) + 0.05) / (min(lights) + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_shapes_stand_out_from_their_ground(scheme: str) -> None:
    palette = colours()[scheme]
    found = {
        (ink, ground): (contrast(rgb(palette[ink], palette), rgb(palette[ground], palette)), least)
        for (ink, ground), least in chain(((pair, 4.5) for pair in TEXT), ((pair, 3.0) for pair in SHAPES))
    }
    assert {pair: round(value, 2) for pair, (value, least) in found.items() if value < least} == {}
