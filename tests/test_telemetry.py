"""Log lines: only declared ones, one line each, and never a secret."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from uuid import UUID

import pytest

from hookpost import telemetry
from hookpost.model import Secret


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("hookpost")
    before = (list(root.handlers), root.level, ours.level, telemetry.counters.copy())
    yield
    root.handlers[:], level, our_level, counts = before
    root.setLevel(level)
    ours.setLevel(our_level)
    telemetry.counters.clear()
    telemetry.counters.update(counts)


def written(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def json_line(event: str, **fields: object) -> dict[str, object]:
    """The one JSON line that this event becomes."""
    stream = io.StringIO()
    telemetry.configure("test", "json", "debug", stream)
    telemetry.log(event, **fields)
    (line,) = written(stream)
    parsed: dict[str, object] = json.loads(line)
    return parsed


def test_a_line_that_would_come_with_each_request_is_written_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    at = {"first": 100.0, "soon": 100.1, "later": 100.9, "next": 101.0, "last": 102.5}
    times = iter(at.values())
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: next(times))
    monkeypatch.setattr(telemetry, "_seldom", {})
    stream = io.StringIO()
    telemetry.configure("test", "json", "info", stream)
    for reason in at:
        telemetry.log("request_unavailable", where="POST /v1/events", reason=reason)
    lines = [json.loads(line) for line in written(stream)]
    assert [(line["reason"], line.get("left_out")) for line in lines] == [("first", None), ("next", 2), ("last", None)]


def test_a_line_of_another_kind_is_written_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: 100.0)
    stream = io.StringIO()
    telemetry.configure("test", "json", "info", stream)
    for _ in range(3):
        telemetry.log("postgres_lost", reason="away")
    assert len(written(stream)) == 3


def test_an_undeclared_event_is_refused() -> None:
    with pytest.raises(telemetry.UndeclaredError, match="'nonsense' is not declared"):
        telemetry.log("nonsense")


def test_an_undeclared_counter_is_refused() -> None:
    with pytest.raises(telemetry.UndeclaredError, match="'nonsense' is not declared"):
        telemetry.count("nonsense")


def test_an_event_without_a_field_of_its_message_is_refused() -> None:
    telemetry.configure("test", "text", "info", io.StringIO())
    with pytest.raises(telemetry.UndeclaredError, match="needs the field 'url'"):
        telemetry.log("server_ready")


def test_every_declared_event_has_a_meaning_and_its_fields_are_usable_names() -> None:
    for name, event in telemetry.EVENTS.items():
        assert re.fullmatch(r"[a-z_]+", name)
        assert event.level in telemetry.LEVELS.values()
        assert event.meaning.endswith((".", "?"))
        fields = re.findall(r"{(.*?)}", event.message)
        assert all(re.fullmatch(r"[a-z_]+", field) for field in fields)
        event.message.format_map(dict.fromkeys(fields, "x"))


def test_a_line_for_a_terminal_is_readable() -> None:
    stream = Terminal()
    telemetry.configure("worker-1", "auto", "info", stream)
    telemetry.log("child_exited", child="api-1", pid=17, reason="signal 9", restarts=3, note="two words")
    (line,) = written(stream)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z WARNING worker-1 +"
        r"child_exited: api-1 \(pid 17\) ended: signal 9 restarts=3 note=\"two words\"",
        line,
    )


def test_a_line_for_a_machine_is_json() -> None:
    line = json_line("worker_ready", worker="w1", pool="default", shards=[1, 2], spare=None, load=0.5)
    assert list(line)[:5] == ["time", "level", "process", "event", "message"]
    expected = {
        "level": "info",
        "process": "test",
        "event": "worker_ready",
        "message": "worker w1 is ready in pool default",
        "worker": "w1",
        "pool": "default",
        "shards": "1-2",
        "spare": None,
        "load": 0.5,
    }
    assert {key: value for key, value in line.items() if key != "time"} == expected


def test_auto_means_json_where_nobody_watches() -> None:
    stream = io.StringIO()
    telemetry.configure("test", "auto", "info", stream)
    telemetry.log("server_stopped")
    assert json.loads(stream.getvalue())["event"] == "server_stopped"


@pytest.mark.parametrize("format_", ["text", "json"])
@pytest.mark.parametrize("value", ["a\nb", "a\r\nb", "a\x1b[31mb", "a\x00b", "a\u2028b", "a\x85b", "a\ud800b"])
def test_no_value_breaks_its_line(format_: telemetry.LogFormat, value: str) -> None:
    stream = io.StringIO()
    telemetry.configure("test", format_, "info", stream)
    telemetry.log("server_stopping", reason=value, more=value)
    telemetry.log("server_stopped")
    lines = written(stream)
    assert len(lines) == 2
    assert lines[0].isprintable()
    lines[0].encode()


def test_levels_below_the_chosen_one_are_left_out() -> None:
    stream = io.StringIO()
    telemetry.configure("test", "text", "warning", stream)
    telemetry.log("server_stopped")
    telemetry.log("journal_gap", shard=1, expected=2, found=4)
    assert ["journal_gap" in line for line in written(stream)] == [True]


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="choose one of debug, info, warning, error"):
        telemetry.configure("test", "text", "loud")


@pytest.mark.parametrize(
    "fields",
    [
        {"reason": Secret(key=b"hunter2hunter2", created_at=0.0)},
        {"reason": b"hunter2"},
        {"reason": "bad key whsec_hunter2aGVsbG8="},
        {"reason": "Authorization: Bearer hunter2"},
        {"reason": "postgresql://joe:hunter2@db/hookpost"},
        {"reason": OSError("cannot reach postgresql://joe:hunter2@db/hookpost")},
        {"reason": ["password=hunter2"]},
        {"reason": "x", "payload": '{"card": "hunter2"}'},
        {"reason": "x", "headers": ["X-Key: hunter2"]},
        {"reason": "x", "admin_key": "hunter2"},
    ],
)
def test_no_secret_reaches_the_log(fields: dict[str, object]) -> None:
    line = json.dumps(json_line("server_stopping", **fields))
    assert "hunter2" not in line
    assert "********" in line


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://joe:pw@example.com:8443/in?token=s3cret#f", "https://example.com:8443/in"),
        ("http://[::1]:80/x?y", "http://[::1]:80/x"),
        ("https://example.com", "https://example.com"),
        ("https://example.com:port/", "(invalid URL)"),
        ("http://[broken", "(invalid URL)"),
        ("not a url", "(invalid URL)"),
    ],
)
def test_a_url_is_logged_without_what_it_may_hide(url: str, shown: str) -> None:
    assert telemetry.safe_url(url) == shown


def test_a_long_value_is_cut() -> None:
    line = json_line("server_stopping", reason="x" * 10_000)
    assert len(str(line["reason"])) == telemetry.VALUE_CHARS_MAX + 1


def test_an_internal_error_says_where_and_what_and_is_counted() -> None:
    stream = io.StringIO()
    telemetry.configure("test", "json", "info", stream)
    before = telemetry.counters["internal_errors"]
    try:
        raise ZeroDivisionError("one by none")
    except ZeroDivisionError as error:
        telemetry.log_error("settle", error, shard=UUID(int=1))
    line = json.loads(stream.getvalue())
    assert line["message"] == "internal error in settle: ZeroDivisionError: one by none"
    assert "test_an_internal_error_says" in line["traceback"]
    assert line["shard"] == str(UUID(int=1))
    assert telemetry.counters["internal_errors"] == before + 1


def test_a_library_speaks_through_the_same_lines() -> None:
    stream = io.StringIO()
    telemetry.configure("test", "json", "info", stream)
    logging.getLogger("some.library").info("too quiet")
    logging.getLogger("some.library").warning("loud\n%s", "password=hunter2")
    (line,) = written(stream)
    parsed = json.loads(line)
    assert parsed["event"] == "library_message"
    assert parsed["logger"] == "some.library"
    assert "hunter2" not in line


def test_a_stream_that_is_gone_is_counted_and_stops_nothing() -> None:
    stream = io.StringIO()
    telemetry.configure("test", "text", "info", stream)
    stream.close()
    telemetry.log("server_stopped")
    assert telemetry.counters["log_lines_failed"] >= 1


@pytest.mark.parametrize(
    ("shards", "shown"),
    [([], ""), ([7], "7"), ([1, 2], "1-2"), ([0, 2, 3, 4, 9], "0,2-4,9"), (list(range(1000)), "0-999")],
)
def test_shards_are_listed_as_ranges(shards: list[int], shown: str) -> None:
    assert json_line("shards_acquired", shards=shards)["shards"] == shown
