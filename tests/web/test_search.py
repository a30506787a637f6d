"""GET /v1/search: what a text may name, and lists that say how far they have looked."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import httpx
import pytest

from hookpost.model import show_id
from hookpost.storage.postgres import search as scanning
from hookpost.web import answers
from hookpost.web.problems import Problem
from hookpost.web.search import Term, read_term, status_range
from tests.web.rows import TenantClient, add_attempt, append_event, endpoint_uuid

ID = "0190b7e8c0de7000800000000000abcd"
UUID_ = UUID(ID)


@pytest.mark.parametrize(
    ("text", "term"),
    [
        (f"evt_{ID}", Term(event_id=UUID_)),
        (f"ep_{ID}", Term(endpoint_id=UUID_)),
        (ID, Term(UUID_, UUID_, UUID_, ID)),
        (str(UUID_), Term(UUID_, UUID_, UUID_, str(UUID_))),
        (f"00-{ID}-b7ad6b7169203331-01", Term(event_id=UUID_, trace_id=UUID_)),
        ("invoice.paid", Term(key="invoice.paid", type="invoice.paid", host="invoice.paid")),
        ("https://api.example.com:8443/a?b", Term(key="https://api.example.com:8443/a?b", host="api.example.com")),
        ("[::1]:80", Term(key="[::1]:80", host="[::1]")),
        ("order 17", Term(key="order 17")),
        ("evt_nonsense", Term(key="evt_nonsense", type="evt_nonsense", host="evt_nonsense")),
    ],
)
def test_a_text_is_tried_as_everything_that_it_may_be(text: str, term: Term) -> None:
    assert read_term(text) == term


@pytest.mark.parametrize(("text", "found"), [(None, None), ("503", (503, 503)), ("4xx", (400, 499))])
def test_a_status_is_one_or_a_class(text: str | None, found: Any) -> None:
    assert status_range(text) == found


@pytest.mark.parametrize("text", ["", "5", "600", "5XX", "20x", "5031"])
def test_what_is_no_status_is_refused(text: str) -> None:
    with pytest.raises(Problem):
        status_range(text)


async def test_a_rare_status_is_found_page_by_page_without_looking_at_all_there_is(
    sql: Any, tenant: TenantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "SCANNED_MAX", 4)
    endpoint = endpoint_uuid(await tenant.endpoint())
    event, _ = await append_event(sql, tenant.uuid, [endpoint])
    for number in range(9):
        status = 503 if number in (0, 8) else 200
        await add_attempt(sql, tenant.uuid, event, endpoint, outcome="retry", http_status=status, scheduled_s=number)
    found, cursor, pages = [], None, 0
    while pages < 10:
        query = {"http_status": "503", **({"cursor": cursor} if cursor else {})}
        answer = (await tenant.get("/v1/search", params=query)).json()
        answers.SearchAnswer.model_validate(answer)
        assert answer["looked_at"] <= 4
        found += [row["scheduled_at"][17:19] for row in answer["data"]]
        pages, cursor = pages + 1, answer["next_cursor"]
        if cursor is None:
            break
    assert found == ["08", "00"]
    assert pages == 3
    answer = await tenant.get("/v1/search", params={"http_status": "503", "cursor": cursor or "x"})
    assert answer.status_code == 400


async def test_a_text_is_found_in_payloads_page_by_page(
    sql: Any, tenant: TenantClient, admin: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "PAYLOADS_SCANNED_MAX", 2)
    ids = [
        show_id("evt", (await append_event(sql, tenant.uuid, [], type=type_, payload=payload))[0])
        for type_, payload in (
            ("a.b", b'{"name": "G\xc3\xbcnther"}'), ("a.b", b'{"name": "50%_\\\\"}'), ("a.b", b"{}"),
            ("c.d", b'{"name": "G\xc3\xbcnther"}'), ("a.b", b"{}"),
        )
    ]  # fmt: skip
    await sql.execute("update events set payload = null, payload_ref = 'x' where seq = 3")

    async def found(**query: str) -> list[str]:
        names, cursor, pages = list[str](), None, 0
        while pages < 10:
            asked = query | ({"cursor": cursor} if cursor else {})
            answer = (await tenant.get("/v1/search", params=asked)).json()
            assert answer["kind"] == "events" and answer["looked_at"] <= 2
            names += [row["event_id"] for row in answer["data"]]
            pages, cursor = pages + 1, answer["next_cursor"]
            if cursor is None:
                break
        return names

    assert await found(payload="Günther") == [ids[3], ids[0]]
    assert await found(payload="Günther", q="c.d") == [ids[3]]
    assert await found(payload="50%_") == [ids[1]], "no character is a wild card"
    assert await found(payload="günther") == []
    of_all = (await admin.get("/v1/search", params={"payload": "Günther"})).json()
    assert [row["event_id"] for row in of_all["data"]] == [ids[3]], "one of the newest two"
    for query in ({"payload": "ab"}, {"payload": "abc", "outcome": "retry"}, {"payload": "abc", "status": "dead"}):
        answer = await tenant.get("/v1/search", params=query)
        assert answer.status_code == 422 and answer.json()["errors"][0]["field"] == "payload", query
