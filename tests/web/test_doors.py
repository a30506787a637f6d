"""Every bound of a request on its way in, on raw sockets against the real server (attack list P1, P7; issue's limits)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from hookpost.web.doors import Doors, WireLimits
from tests.patience import PATIENCE_S
from tests.web.test_wire import Wire, answer

# A hundred times as patient as a server is: a test whose machine stands still for seconds is not overdue by that.
LIMITS = WireLimits(
    target_bytes=200, header_bytes=1000, headers=20, message_bytes=20_000, head_s=1000.0, body_s=1500.0,
    body_rate_min=10.0, answer_s=3000.0, connections=4, connections_per_address=3,
)  # fmt: skip


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    wire = Wire(LIMITS)
    await wire.start()
    yield wire
    await wire.stop()


async def refused(reader: asyncio.StreamReader) -> tuple[int, dict[str, Any]]:
    """The problem that was answered, after which nothing comes."""
    status, headers, body = await asyncio.wait_for(answer(reader), PATIENCE_S)
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"connection"] == b"close"
    with suppress(ConnectionError):  # what we send to a closed connection is reset
        assert await reader.read() == b""
    problem = json.loads(body)
    assert problem["type"].startswith("/problems/")
    assert len(problem["detail"]) > 15
    return int(status), problem


async def said(wire: Wire, *pieces: bytes) -> tuple[int, dict[str, Any]]:
    """What the server answers to these pieces, sent apart."""
    reader, writer = await wire.connect()
    answered = asyncio.create_task(refused(reader))
    for piece in pieces:
        if answered.done():
            break
        writer.write(piece)
        await wire.heard()
    return await answered


async def later(wire: Wire, seconds: float) -> None:
    """What the sweep finds after so long; the clock need not wait for it."""
    await wire.heard()
    wire.doors.sweep(asyncio.get_running_loop().time() + seconds)


async def test_a_head_within_all_bounds_passes(wire: Wire) -> None:
    reader, writer = await wire.connect()
    fields = b"".join(b"x-%d: v\r\n" % n for n in range(18))
    writer.write(b"GET /" + b"a" * 199 + b" HTTP/1.1\r\nhost: a\r\n" + fields + b"\r\n")
    assert (await answer(reader))[0] == b"200"


@pytest.mark.parametrize("pieces", [1, 7], ids=["at-once", "in-pieces"])
async def test_a_long_target_is_414(wire: Wire, pieces: int) -> None:
    request = b"GET /" + b"a" * 300 + b" HTTP/1.1\r\nhost: a\r\n\r\n"
    size = -(-len(request) // pieces)
    status, problem = await said(wire, *(request[at : at + size] for at in range(0, len(request), size)))
    assert (status, "200 bytes" in problem["detail"]) == (414, True)


async def test_a_target_that_never_ends_is_414(wire: Wire) -> None:
    assert (await said(wire, b"GET /", *[b"a" * 100] * 4))[0] == 414


@pytest.mark.parametrize("pieces", [1, 9], ids=["at-once", "in-pieces"])
@pytest.mark.parametrize(
    "fields", [b"".join(b"x-%d: v\r\n" % n for n in range(30)), b"x: " + b"v" * 1200 + b"\r\n"], ids=["many", "large"]
)
async def test_many_or_large_header_fields_are_431(wire: Wire, fields: bytes, pieces: int) -> None:
    request = b"POST /in-place HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n" + fields + b"\r\n{}"
    size = -(-len(request) // pieces)
    assert (await said(wire, *(request[at : at + size] for at in range(0, len(request), size))))[0] == 431


async def test_a_header_field_that_never_ends_is_431(wire: Wire) -> None:
    assert (await said(wire, b"GET / HTTP/1.1\r\nx: ", *[b"v" * 500] * 4))[0] == 431


CHUNKED = b"POST /slow HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"


async def test_trailers_are_bounded_like_headers(wire: Wire) -> None:
    trailers = [b"".join(b"t-%d-%d: v\r\n" % (n, m) for m in range(10)) for n in range(3)]
    assert (await said(wire, CHUNKED + b"0\r\n", *trailers))[0] == 431


async def test_p1_a_message_that_is_mostly_chunk_extensions_ends(wire: Wire) -> None:
    assert (await said(wire, CHUNKED, *[b"1;" + b"x" * 4000 + b"\r\na\r\n"] * 6))[0] == 413


async def test_what_is_no_http_gets_a_problem_too(wire: Wire) -> None:
    assert (await said(wire, b"\x16\x03\x01\x02\x00\x01\x00\x01"))[0] == 400


async def test_p7_header_fields_that_drip_are_408(wire: Wire) -> None:
    reader, writer = await wire.connect()
    writer.write(b"GET / HTTP/1.1\r\nx: ")
    await later(wire, 500)
    writer.write(b"still here")
    await later(wire, 1050)
    status, problem = await refused(reader)
    assert (status, "1000 s" in problem["detail"]) == (408, True)


async def test_p7_a_body_that_drips_is_408_and_its_size_gives_it_time(wire: Wire) -> None:
    reader, writer = await wire.connect()
    writer.write(b"POST /slow HTTP/1.1\r\nhost: a\r\ncontent-length: 15000\r\n\r\n" + b"x" * 5000)
    await later(wire, 1700)
    assert len(wire.doors) == 1
    await later(wire, 2200)
    assert (await refused(reader))[0] == 408


async def test_p7_a_client_that_never_says_anything_is_let_go(wire: Wire) -> None:
    reader, _ = await wire.connect()
    await later(wire, 500)
    assert len(wire.doors) == 1
    await later(wire, 1100)
    assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""


async def test_p7_a_client_that_does_not_read_its_answer_is_cut_off(wire: Wire) -> None:
    reader, writer = await wire.connect()
    writer.write(b"POST /in-place HTTP/1.1\r\nhost: a\r\ncontent-length: 15000\r\n\r\n" + b"x" * 15_000)
    await answer(reader)
    [guest] = wire.doors._guests
    guest.flow.pause_writing()  # type: ignore[attr-defined]  # as the transport does when its buffer is full
    await later(wire, 0)
    await later(wire, 2000)
    assert len(wire.doors) == 1
    await later(wire, 3100)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(1), PATIENCE_S)


async def test_p7_while_one_drips_others_are_served_and_a_kept_connection_is_not_overdue(wire: Wire) -> None:
    _, slow = await wire.connect()
    slow.write(b"POST /slow HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nx")
    reader, writer = await wire.connect()
    for _ in range(2):
        writer.write(b"POST /in-place HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}")
        assert (await answer(reader))[2] == b"{}"
        await later(wire, 6000)
    assert len(wire.doors) == 1


async def test_a_request_that_was_answered_before_its_body_came_gets_no_second_answer(wire: Wire) -> None:
    reader, writer = await wire.connect()
    writer.write(b"POST /early HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nx")
    assert (await answer(reader))[2] == b"early"
    await later(wire, 2000)
    assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""


async def test_a_piece_that_ends_in_the_next_head_does_not_count_as_that_heads(wire: Wire) -> None:
    reader, writer = await wire.connect()
    whole = b"POST /in-place HTTP/1.1\r\nhost: a\r\ncontent-length: 5000\r\n\r\n" + b"x" * 5000
    writer.write(whole + b"GET /x HTTP/1.1\r\nx-a: 1")
    assert len((await answer(reader))[2]) == 5000
    writer.write(b"2\r\nx-b: 3\r\n")
    await later(wire, 0)
    writer.write(b"\r\n")
    assert (await answer(reader))[0] == b"200"


async def test_the_answer_to_the_request_before_is_not_lost_to_a_late_one(wire: Wire) -> None:
    wire.at_once = False
    reader, writer = await wire.connect()
    writer.write(b"POST /in-place HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}GET /x HT")
    reply = await wire.replies.get()
    await later(wire, 100)
    reply(202, [], b"done")
    assert (await answer(reader))[2] == b"done"
    await later(wire, 2000)
    assert (await refused(reader))[0] == 408


async def test_too_many_connections_of_an_address_are_429_and_leave_room_when_they_end(wire: Wire) -> None:
    first = [await wire.connect() for _ in range(3)]
    reader, _ = await wire.connect()
    status, problem = await refused(reader)
    assert (status, "3 connections" in problem["detail"]) == (429, True)
    first[0][1].close()
    while len(wire.doors) > 2:
        await asyncio.sleep(0)
    reader, writer = await wire.connect()
    writer.write(b"POST /in-place HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}")
    assert (await answer(reader))[2] == b"{}"


async def test_too_many_connections_in_all_are_503(wire: Wire) -> None:
    doors = Doors(WireLimits(connections=2, connections_per_address=2))

    class Quiet:
        def look(self, now: float) -> None: ...

    guests = [Quiet() for _ in range(3)]
    refusals = [doors.enter(guest, f"192.0.2.{n}") for n, guest in enumerate(guests)]
    assert [None if refusal is None else refusal.status for refusal in refusals] == [None, None, 503]
    assert refusals[2] is not None
    assert refusals[2].headers["Retry-After"] == "5"
    for n, guest in enumerate(guests):
        doors.leave(guest, f"192.0.2.{n}")
    assert (len(doors), doors._by_address) == (0, {})
