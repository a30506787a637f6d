"""What pages are made of, without a page."""

from __future__ import annotations

import re
import shlex
import subprocess
import xml.etree.ElementTree as ET
from datetime import datetime, timedelta

import pytest

from hookpost.model import DeadReason, ErrorCode, WaitReason
from hookpost.web.dashboard import words
from hookpost.web.dashboard.charts import Point, histogram, lines, stacked, strip
from hookpost.web.dashboard.figures import histogram_buckets, outcome_points
from hookpost.web.dashboard.foreign import readable, visible
from hookpost.web.dashboard.phases import phases
from hookpost.web.dashboard.pretty import pretty
from hookpost.web.dashboard.render import (
    ago,
    coded,
    count,
    duration,
    linked,
    milliseconds,
    percent,
    sentence,
    size,
)
from hookpost.web.dashboard.sent import curl


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"), ("a\x1b[31m", "a\\x1b[31m"), ("\u202eabc", "\\u202eabc"), ("a\r\nb\tc\n", "a\nb\tc\n"), ("a\rb", "a\\x0db"),
        ("\ud800", "\\ud800"), ("\ufeffx", "\\ufeffx"), ("\U000e0041", "\\U000e0041"), ("é日本👩‍👩‍👧", "é日本👩‍👩‍👧"), ("\x85", "\\u0085"),
    ],
)  # fmt: skip
def test_every_character_that_would_act_is_shown_by_its_name(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_bytes_that_are_no_text_are_shown_as_bytes() -> None:
    assert readable(b"a\xffb\xc3\xa9") == "a\\xffbé"


def test_json_is_indented_and_no_token_changes() -> None:
    text = '{"a":1.50,"b":[1e3,{"c":"x, {y}: \\"z\\""}],"d":{},"e":[]}'
    shown = pretty(text, 10_000)
    assert shown == (
        '{\n  "a": 1.50,\n  "b": [\n    1e3,\n    {\n      "c": "x, {y}: \\"z\\""\n    }\n  ],\n  "d": {},\n  "e": []\n}'
    )
    assert re.sub(r"\s", "", shown) == re.sub(r"\s", "", text)


def test_no_text_makes_the_indenter_fail_or_run_away() -> None:
    for text in ("[" * 100_000, '"unclosed', "}}}]", "", "plain words", '{"a":' * 1000):
        assert len(pretty(text, 5_000)) < 80_000


def test_commands_in_a_sentence_stand_out_and_all_of_it_is_text() -> None:
    assert coded("Say `a <b>`, not <i>\u202e.") == "Say <code>a &lt;b&gt;</code>, not &lt;i&gt;\\u202e."


def test_what_a_sentence_names_can_be_followed_and_all_of_it_is_text() -> None:
    event, endpoint = "evt_" + "0a" * 16, "ep_" + "0b" * 16
    assert linked(f"<b>{event} goes to {endpoint}.") == (
        f'&lt;b&gt;<a class="id" href="/dashboard/events/{event}">{event}</a> goes to '
        f'<a class="id" href="/dashboard/endpoints/{endpoint}">{endpoint}</a>.'
    )
    assert linked("\u202enobody") == "\\u202enobody"


def test_a_field_that_is_refused_is_named_as_on_the_page() -> None:
    assert sentence("http_status: must be a status") == "HTTP status: must be a status."
    assert sentence("events.1: must be a type") == "Events, no. 2: must be a type."
    assert sentence("there is no such event") == "There is no such event."


def test_every_reason_outcome_and_error_has_words() -> None:
    assert set(words.WAITING) == set(WaitReason)
    assert set(words.DEAD) == set(DeadReason)
    assert set(words.ERROR) == set(ErrorCode)


PHASE_TIMES = {"dns": 2, "connect": 5, "tls": 12, "first_byte": 40, "total": 50}


def test_phases_follow_each_other_and_fill_the_bar() -> None:
    found = phases(PHASE_TIMES, 50)
    assert [(phase.name, phase.ms) for phase in found] == [
        ("dns", 2), ("connect", 3), ("tls", 7), ("wait", 28), ("body", 10),
    ]  # fmt: skip
    assert found[-1].x + found[-1].width == pytest.approx(1000)


def test_a_connection_that_was_kept_has_no_phases_of_connecting() -> None:
    found = phases({"dns": 0, "connect": 0, "tls": 0, "first_byte": 7, "total": 9}, 9)
    assert [phase.name for phase in found] == ["wait", "body"]


POINTS = [Point(f"{n:02}:00", f"<b>{n}\nhours", {"good": n * 7, "bad": n % 3, "p50": n or None}) for n in range(48)]


@pytest.mark.parametrize("points", [POINTS, POINTS[:1], []])
def test_plots_are_well_formed_and_escape_what_they_say(points: list[Point]) -> None:
    for svg in (
        stacked(points, ("good", "bad"), name='a "name"'), lines(points, ("p50",), name="n"), strip(points, name="n"),
        histogram([(1, 1, 5), (2, 2, 0), (3, 3, 9)], name="n"),
    ):  # fmt: skip
        root = ET.fromstring(svg)
        assert root.attrib["role"] == "img"
        assert "style=" not in svg and "<b>" not in svg
        for rect in root.iter("rect"):
            assert float(rect.attrib["width"]) >= 0 and float(rect.attrib["height"]) >= 0


@pytest.mark.parametrize(
    ("first", "step_s", "points", "labels"),
    [
        ("2026-11-27T01:08:00.000Z", 60, 61, ["01:10", "01:20", "01:30", "01:40", "01:50", "02:00"]),
        ("2026-11-26T13:30:00.000Z", 1800, 49, ["16:00", "20:00", "27 Nov", "04:00", "08:00", "12:00"]),
        ("2026-11-20T12:00:00.000Z", 21_600, 29, [f"{day} Nov" for day in range(21, 28)]),
        ("2026-11-01T00:00:00.000Z", 86_400, 31, [f"{day} Nov" for day in (3, 8, 13, 18, 23, 28)]),
    ],
)
def test_axes_are_labelled_at_round_times(first: str, step_s: int, points: int, labels: list[str]) -> None:
    start = datetime.fromisoformat(first)
    nothing = {"attempts": 0, "outcomes": {"delivered": 0, "retry": 0, "dead": 0}}
    series = [{"start": (start + n * timedelta(seconds=step_s)).isoformat(), **nothing} for n in range(points)]
    assert [point.label for point in outcome_points(series, step_s=step_s) if point.label] == labels


def heights(svg: str) -> list[float]:
    """How high the dots of a plot are, from its foot (0) to its top (1)."""
    return [1 - (float(dot.attrib["cy"]) - 10) / 174 for dot in ET.fromstring(svg).iter("circle")]


@pytest.mark.parametrize(
    ("p50", "p99", "labels"),
    [
        (29, 200_000, ["10 ms", "100 ms", "1 s", "10 s", "1 min", "10 min"]),
        (29, 69, ["20 ms", "50 ms", "100 ms"]),
        (0.4, 0.5, ["1 ms", "2 ms"]),
        (20_000, 86_400_000 * 3, ["10 s", "1 min", "10 min", "1 h", "10 h", "4 d"]),
        (1, 86_400_000 * 40, ["1 ms", "100 ms", "10 s", "10 min", "10 h", "40 d"]),
    ],
)
def test_latencies_far_apart_are_told_by_one_axis_of_round_times(p50: float, p99: float, labels: list[str]) -> None:
    svg = lines([Point("", "", {"p50": p50, "p99": p99})], ("p50", "p99"), name="n")
    shown = [text.text for text in ET.fromstring(svg).iter("text") if text.attrib.get("class") is None]
    assert shown == labels
    low, high = heights(svg)
    assert 0 <= low <= high <= 1
    if p99 > 2 * p50:
        assert high - low > 0.2, "both are off the axis' ends, and apart"


def test_a_histogram_has_a_place_for_latencies_that_nothing_took() -> None:
    held = [{"low_ms": low, "high_ms": high, "attempts": n} for low, high, n in ((2, 2, 7), (6, 6, 1), (8, 9, 2))]
    found = histogram_buckets({"latency_buckets": held})
    assert found == [(2, 2, 7), (3, 3, 0), (4, 4, 0), (5, 5, 0), (6, 6, 1), (7, 7, 0), (8, 9, 2)]
    assert histogram_buckets({"latency_buckets": []}) == []


@pytest.mark.parametrize("body", [b'{"a": "it\'s"}', 'é\u202e"\\'.encode(), b"\xff\x00\x1b\n", b"!`$(id)`"])
def test_the_command_sends_the_bytes_that_were_delivered(body: bytes) -> None:
    command = curl("https://example.com/a?b='c", "a: 1\nb: it's", body)
    if b"\0" not in body:
        said = subprocess.run(
            ["bash", "-c", command.replace("curl -i", "printf '%s\\n'")], capture_output=True, check=True
        )
        assert body in said.stdout and b"b: it's" in said.stdout
    assert command.isprintable() or (set(command) - {"\n"} and all(c.isprintable() or c == "\n" for c in command))
    if body.isascii():
        assert shlex.split(command)


def test_a_long_body_comes_from_a_file() -> None:
    assert "@payload.json" in curl("https://example.com", "a: 1", b"x" * 100_000)


def test_numbers_are_written_as_people_read_them() -> None:
    assert [ago(s) for s in (0.5, 59, 61, 3600, 90_000, 86_400 * 30)] == [
        "500 ms",
        "59 s",
        "1 min 1 s",
        "1 h",
        "1 d 1 h",
        "30 d",
    ]
    assert [milliseconds(v) for v in (None, 0, 0.5, 8, 123.4, 4200, 30_000, 61_000, 7_500_000)] == [
        "–",
        "< 1 ms",
        "0.5 ms",
        "8 ms",
        "123 ms",
        "4.20 s",
        "30 s",
        "1 min 1 s",
        "2 h 5 min",
    ]
    assert [percent(*v) for v in ((0, 0), (0, 5), (5, 5), (99_999, 100_000), (1, 3))] == [
        "–",
        "0 %",
        "100 %",
        "99.99 %",
        "33.3 %",
    ]
    assert count(1_234_567) == "1\u202f234\u202f567"
    assert [size(v) for v in (5, 2048, 5 << 20)] == ["5 B", "2.0 KiB", "5.0 MiB"]
    assert [duration(v) for v in (5, 10_800, 259_200, 0.5, 90)] == ["5 s", "3 h", "3 d", "0.5 s", "90 s"]
