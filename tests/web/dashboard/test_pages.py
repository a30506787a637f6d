"""Each page shows what the API would tell the same key, and its buttons do what they say."""

from __future__ import annotations

import re
import shlex
import time
from html import unescape
from itertools import pairwise
from typing import Any

import httpx

from hookpost.model import show_id
from hookpost.policy.signing import parse_secret, verify
from hookpost.storage.postgres.store import PostgresStore
from hookpost.web.dashboard.pages.search import OWED_MAX
from tests.patience import PATIENCE_S
from tests.web.dashboard.conftest import Browser, text_of
from tests.web.rows import (
    Submitted,
    TenantClient,
    add_attempt,
    add_dead,
    add_waiting,
    append_event,
    endpoint_uuid,
    make_tenant,
    set_progress,
)

# What must only ever be read: each would act if it were let.
HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><svg onload=alert(1)>', "{{ 7*7 }}", "javascript:alert(1)",
    "\x1b[2J\x1b[31mred", "\u202egnp.exe", "\u2066hidden\u2069", "a\u200bb", "\x85\x9b31m",
]  # fmt: skip


async def delivered(sql: Any, tenant: TenantClient, **fields: Any) -> tuple[str, dict[str, Any], str]:
    """An event that failed once and was then delivered: its id, endpoint and the failed attempt's id."""
    endpoint = await tenant.endpoint(**fields)
    uuid = endpoint_uuid(endpoint)
    event, seq = await append_event(sql, tenant.uuid, [uuid])
    await set_progress(sql, read_to=seq)
    failed = await add_attempt(sql, tenant.uuid, event, uuid, outcome="retry", http_status=503, scheduled_s=1)
    await add_attempt(sql, tenant.uuid, event, uuid, outcome="delivered", retry_count=1, scheduled_s=2)
    return show_id("evt", event), endpoint, show_id("att", failed)


# ---- event ------------------------------------------------------------------------------------------------------------


async def test_an_event_shows_its_payload_its_attempts_and_where_it_stands(
    sql: Any, tenant: TenantClient, browser: Browser
) -> None:
    event_id, endpoint, attempt_id = await delivered(sql, tenant)
    page = await browser.shown(f"/dashboard/events/{event_id}")
    told = text_of(page)
    assert '"n": 1.50' in told, "as it was posted: no parser has rounded it"
    assert endpoint["url"] in told
    assert "Attempt 1" in told and "Attempt 2" in told and "503" in told
    assert "Delivered at" in told
    assert "Retry now" not in told, "nothing waits"
    assert re.search(r"Accepted by the API \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} UTC", told)
    assert page.count('<svg class="phases"') == 2
    told = text_of(await browser.shown(f"/dashboard/events/{event_id}/attempts/{attempt_id}"))
    assert f"webhook-id: {event_id}" in told
    assert "webhook-signature: v1," in told
    assert "curl -i" in told and "--data-binary" in told
    assert "HTTP/1.1 200 OK" in told and "\\xff" in told, "bytes that are no text are shown as what they are"


async def test_the_command_that_is_copied_carries_a_signature_that_is_good_now(
    sql: Any, tenant: TenantClient, browser: Browser
) -> None:
    event_id, endpoint, attempt_id = await delivered(sql, tenant)
    page = await browser.shown(f"/dashboard/events/{event_id}/attempts/{attempt_id}")
    command = re.search(r'id="curl" data-text="([^"]*)"', page)
    assert command
    words = shlex.split(unescape(command[1]).replace("\\\n", " "))
    assert words[:3] == ["curl", "-i", endpoint["url"]]
    headers = dict(line.split(": ", 1) for flag, line in pairwise(words) if flag == "-H")
    assert (headers["webhook-id"], headers["content-type"]) == (event_id, "application/json")
    body = words[words.index("--data-binary") + 1].encode()
    verify(headers, body, [parse_secret(endpoint["secret"])], time.time(), tolerance_s=PATIENCE_S)


async def test_two_attempts_are_compared(sql: Any, tenant: TenantClient, browser: Browser) -> None:
    event_id, _, attempt_id = await delivered(sql, tenant)
    page = await browser.shown(f"/dashboard/events/{event_id}/attempts/{attempt_id}")
    other = re.search(r'<option value="(att_[0-9a-f]+)"', page)
    assert other
    path = f"/dashboard/events/{event_id}/attempts/{attempt_id}/compare"
    told = text_of(await browser.shown(f"{path}?b={other[1]}"))
    assert "HTTP status 503 200" in told
    assert "Outcome failed, retried delivered" in told, "in the words of the other pages"
    assert "The same, byte for byte" in told
    await browser.shown(f"{path}?b=att_0", 404)


async def test_the_payload_is_downloaded_byte_for_byte_and_never_shown_as_a_page(
    sql: Any, tenant: TenantClient, browser: Browser
) -> None:
    event_id, _, _ = await delivered(sql, tenant)
    answer = await browser.get(f"/dashboard/events/{event_id}/payload")
    assert answer.content == b'{"n": 1.50}'
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_waiting_delivery_says_why_and_when_and_can_be_hurried(
    sql: Any, tenant: TenantClient, browser: Browser
) -> None:
    endpoint = await tenant.endpoint()
    uuid = endpoint_uuid(endpoint)
    event, seq = await append_event(sql, tenant.uuid, [uuid])
    await set_progress(sql, read_to=seq)
    await add_waiting(sql, tenant.uuid, event, uuid, seq)
    path = f"/dashboard/events/{show_id('evt', event)}"
    told = text_of(await browser.shown(path))
    assert "Retry now" in told and "Cancel" in told
    assert "waiting: retry" in told and "2030-01-02 03:04:05" in told
    answer = await browser.post(f"{path}/retry_now")
    assert answer.headers["location"] == f"{path}?did=retrying"
    assert "due now" in text_of(await browser.shown(f"{path}?did=retrying"))
    assert (await browser.post(f"{path}/cancel")).headers["location"].endswith("did=cancelled")


async def test_an_attempt_that_was_not_answered_offers_no_answer_to_copy(
    sql: Any, tenant: TenantClient, browser: Browser
) -> None:
    endpoint = await tenant.endpoint()
    uuid = endpoint_uuid(endpoint)
    event, seq = await append_event(sql, tenant.uuid, [uuid])
    await set_progress(sql, read_to=seq)
    attempt = await add_attempt(
        sql,
        tenant.uuid,
        event,
        uuid,
        outcome="retry",
        http_status=None,
        error_code="connect_refused",
        response_head=b"",
    )
    page = await browser.shown(f"/dashboard/events/{show_id('evt', event)}/attempts/{show_id('att', attempt)}")
    assert "There was none." in text_of(page)
    assert 'data-copy="#answer"' not in page


async def test_an_event_that_is_in_the_way_can_be_followed(sql: Any, tenant: TenantClient, browser: Browser) -> None:
    endpoint = await tenant.endpoint(ordered=True)
    uuid = endpoint_uuid(endpoint)
    first, _ = await append_event(sql, tenant.uuid, [uuid])
    second, seq = await append_event(sql, tenant.uuid, [uuid])
    await set_progress(sql, read_to=seq)
    await add_waiting(sql, tenant.uuid, first, uuid, seq - 1, reason="retry")
    await add_waiting(sql, tenant.uuid, second, uuid, seq, reason="ordered")
    page = await browser.shown(f"/dashboard/events/{show_id('evt', second)}")
    assert f'href="/dashboard/events/{show_id("evt", first)}"' in page


async def test_an_event_is_replayed_to_one_endpoint_or_to_all(sql: Any, tenant: TenantClient, browser: Browser) -> None:
    event_id, endpoint, _ = await delivered(sql, tenant)
    for fields in ({}, {"endpoint_id": endpoint["endpoint_id"]}):
        answer = await browser.post(f"/dashboard/events/{event_id}/replay", fields)
        assert answer.headers["location"].endswith("did=replayed"), answer.text
    assert "queued" in text_of(await browser.shown(f"/dashboard/events/{event_id}"))


async def test_a_fan_out_of_many_is_listed_and_told_one_by_one(
    sql: Any, tenant: TenantClient, browser: Browser
) -> None:
    uuids = [endpoint_uuid(await tenant.endpoint()) for _ in range(14)]
    event, _ = await append_event(sql, tenant.uuid, uuids)
    path = f"/dashboard/events/{show_id('evt', event)}"
    page = await browser.shown(path)
    assert page.count(">timeline</a>") == 14
    told = text_of(await browser.shown(f"{path}?endpoint_id={show_id('ep', uuids[0])}"))
    assert "One delivery of 14" in told and "In the journal" in told


# ---- hostile content --------------------------------------------------------------------------------------------------


async def test_what_others_wrote_is_only_ever_text(
    sql: Any, tenant: TenantClient, admin: httpx.AsyncClient, browser: Browser, operator: Browser
) -> None:
    hostile = " ".join(HOSTILE)
    event_id, endpoint, attempt_id = await delivered(sql, tenant, description=hostile, metadata={"k": hostile})
    await sql.execute("update events set payload = $1, type = $2", f'{{"a": "{hostile}"}}'.encode(), hostile)
    await sql.execute("update attempts set response_head = $1, address = $2, worker = $2", hostile.encode(), hostile)
    await sql.execute("update endpoints set url = $1", f"https://example.com/{hostile}")
    await sql.execute("update tenants set name = $1", hostile)
    event = event_id.removeprefix("evt_")
    await sql.execute("update events set idempotency_key = $1 where event_id = $2::text::uuid", hostile, event)
    paths = (
        "/dashboard", "/dashboard/search", f"/dashboard/search?q={event_id}", f"/dashboard/events/{event_id}",
        "/dashboard/search?outcome=retry",
        f"/dashboard/events/{event_id}/attempts/{attempt_id}", "/dashboard/endpoints",
        f"/dashboard/events/{event_id}/attempts/{attempt_id}/compare?b={attempt_id}",
        f"/dashboard/endpoints/{endpoint['endpoint_id']}", f"/dashboard/endpoints/{endpoint['endpoint_id']}/edit",
    )  # fmt: skip
    for visitor, path in [*((browser, path) for path in paths), (operator, "/dashboard/tenants")]:
        page = await visitor.shown(path)
        for acting in ("<script>alert", "<img src=x", "<svg onload", "\x1b", "\u202e", "\u2066", "\u200b", "\x9b"):
            assert acting not in page, path
        assert 'href="javascript:' not in page, path
        assert "49" not in re.findall(r"{{|>49<", page), path


async def test_a_query_comes_back_as_text_too(browser: Browser) -> None:
    for hostile in HOSTILE:
        answer = await browser.get("/dashboard/search", params={"q": hostile})
        assert answer.status_code == 200, answer.text
        assert "<script>alert" not in answer.text and "onerror=alert(1)>" not in answer.text
        assert "\x1b" not in answer.text and "\u202e" not in answer.text


async def test_a_line_of_a_mebibyte_is_cut_and_broken_text_does_not_break_the_page(
    sql: Any, tenant: TenantClient, browser: Browser
) -> None:
    event_id, _, attempt_id = await delivered(sql, tenant)
    for payload in (b'"' + b"x" * (1 << 20) + b'"', b'"\xff\xfe\x00\xed\xa0\x80"', b"[" * 50_000, b""):
        await sql.execute("update events set payload = $1", payload)
        for path in (f"/dashboard/events/{event_id}", f"/dashboard/events/{event_id}/attempts/{attempt_id}"):
            assert len(await browser.shown(path)) < 400_000
        assert (await browser.get(f"/dashboard/events/{event_id}/payload")).content == payload


# ---- isolation --------------------------------------------------------------------------------------------------------


async def test_another_tenants_things_are_not_there(
    sql: Any, tenant: TenantClient, admin: httpx.AsyncClient, browser: Browser
) -> None:
    stranger = await make_tenant(admin, "other")
    event_id, endpoint, attempt_id = await delivered(sql, stranger)
    for path in (
        f"/dashboard/events/{event_id}", f"/dashboard/events/{event_id}/payload",
        f"/dashboard/events/{event_id}/attempts/{attempt_id}", f"/dashboard/endpoints/{endpoint['endpoint_id']}",
        f"/dashboard/endpoints/{endpoint['endpoint_id']}/secret", f"/dashboard/endpoints/{endpoint['endpoint_id']}/edit",
    ):  # fmt: skip
        await browser.shown(path, 404)
    for action in ("replay", "retry_now", "cancel"):
        assert (await browser.post(f"/dashboard/events/{event_id}/{action}")).status_code == 404
    for action in ("pause", "resume", "rotate", "test", "delete"):
        answer = await browser.post(f"/dashboard/endpoints/{endpoint['endpoint_id']}/{action}", {"grace_period_s": "0"})
        assert answer.status_code == 404, action
    for query in (event_id, endpoint["endpoint_id"], "example.com", "a.b"):
        told = text_of(await browser.shown(f"/dashboard/search?q={query}"))
        assert "https://example.com" not in told
        assert told.count(event_id) <= 1, "what was asked for comes back in the box alone"
    await browser.shown("/dashboard/tenants", 403)
    await browser.shown(f"/dashboard/search?tenant_id={stranger.tenant_id}", 200)
    assert event_id not in await browser.shown(f"/dashboard/search?tenant_id={stranger.tenant_id}")


async def test_a_key_that_may_only_read_sees_no_buttons_and_can_press_none(
    sql: Any, admin: httpx.AsyncClient, stranger: Browser
) -> None:
    owner = await make_tenant(admin)
    event_id, endpoint, attempt_id = await delivered(sql, owner)
    path = f"/v1/tenants/{owner.tenant_id}/api_keys"
    key = (await admin.post(path, json={"name": "r", "scopes": ["read"]})).json()["key"]
    await stranger.sign_in(key)
    page = await stranger.shown(f"/dashboard/events/{event_id}")
    assert "/replay" not in page, "neither a button nor the section"
    assert "curl" not in await stranger.shown(f"/dashboard/events/{event_id}/attempts/{attempt_id}")
    assert "/pause" not in await stranger.shown(f"/dashboard/endpoints/{endpoint['endpoint_id']}")
    assert (await stranger.post(f"/dashboard/events/{event_id}/replay")).status_code == 403
    one = f"/dashboard/endpoints/{endpoint['endpoint_id']}"
    for form in (f"{one}/secret", f"{one}/edit", f"{one}/test", "/dashboard/endpoints/new"):
        assert "lacks the scope endpoints:write" in await stranger.shown(form, 403), "before anything is filled in"


# ---- search -----------------------------------------------------------------------------------------------------------


async def test_one_box_finds_what_a_text_names(sql: Any, tenant: TenantClient, browser: Browser) -> None:
    event_id, endpoint, _ = await delivered(sql, tenant, url="https://api.shop.example/hook")
    trace = "0af7651916cd43dd8448eb211c80319c"
    await sql.execute("update events set idempotency_key = 'order 17', trace_id = $1::text::uuid", trace)
    for query in (event_id, "order 17", trace, f"00-{trace}-b7ad6b7169203331-01", "a.b", event_id.removeprefix("evt_")):
        answer = await browser.get("/dashboard/search", params={"q": query})
        assert event_id in re.sub(r"<input[^>]*>", "", answer.text), query
    for query in (endpoint["endpoint_id"], "shop.example", "api.shop.example", "https://api.shop.example:443/other"):
        answer = await browser.get("/dashboard/search", params={"q": query})
        assert "https://api.shop.example/hook" in text_of(answer.text), query
    for query in ("hop.example", "order 1", "a.c"):
        answer = await browser.get("/dashboard/search", params={"q": query})
        assert "/hook" not in text_of(answer.text), query


FILTERS = [
    ("status=delivered", 1), ("status=dead", 0), ("status=waiting", 0), ("outcome=retry", 1), ("outcome=dead", 0),
    ("http_status=503", 1), ("http_status=5xx", 1), ("http_status=4xx", 0), ("http_status=5xx&outcome=delivered", 0),
    ("within=24h", 1), ("until=2020-01-01T00:00:00Z", 0), ("since=2020-01-01T00:00:00Z&outcome=retry", 1),
]  # fmt: skip


async def test_filters_are_in_the_url_and_narrow_the_list_down(
    sql: Any, tenant: TenantClient, browser: Browser, operator: Browser
) -> None:
    event_id, _, _ = await delivered(sql, tenant)
    for filters, found in FILTERS:
        for visitor in (browser, operator):
            page = await visitor.shown(f"/dashboard/search?{filters}")
            assert len(re.findall(rf'href="/dashboard/events/{event_id}"', page)) == found, filters


async def test_a_list_of_events_tells_where_each_stands(
    sql: Any, tenant: TenantClient, browser: Browser, operator: Browser
) -> None:
    arrived, endpoint, _ = await delivered(sql, tenant)
    uuid = endpoint_uuid(endpoint)
    (waits, seq), (died, _), (unwanted, last) = [
        await append_event(sql, tenant.uuid, owed) for owed in ([uuid], [uuid], [])
    ]
    await set_progress(sql, read_to=last)
    await add_waiting(sql, tenant.uuid, waits, uuid, seq)
    await add_dead(sql, tenant.uuid, died, uuid)
    wide, _ = await append_event(sql, tenant.uuid, [uuid] * (OWED_MAX + 1))
    for visitor in (browser, operator):
        page = await visitor.shown("/dashboard/search")
        told = {row[0]: text_of(row[1]) for row in re.findall(r"events/(evt_[0-9a-f]+)\"(.*?)</tr>", page, re.DOTALL)}
        assert " delivered " in told[arrived]
        assert " on its way " in told[show_id("evt", waits)]
        assert " dead " in told[show_id("evt", died)]
        assert " no endpoint wanted it " in told[show_id("evt", unwanted)]
        assert " – " in told[show_id("evt", wide)], "its own page tells"


async def test_a_filter_that_cannot_be_read_is_shown_as_it_was_filled_in(browser: Browser) -> None:
    for path, field, words in (
        ("/dashboard/search?q=kept&since=yesterday", 'name="since" value="yesterday"', "From: must be a time"),
        ("/dashboard/search?q=kept&http_status=abc", 'name="http_status" value="abc"', "HTTP status: must be a status"),
        ("/dashboard/audit-log?action=kept&until=later", 'name="until" value="later"', "Until: must be a time"),
    ):
        page = await browser.shown(path, 422)
        assert field in page and 'value="kept"' in page
        assert words in text_of(page)
        assert "Nothing" not in text_of(page), "nothing was looked for"


async def test_a_filter_that_makes_no_sense_is_refused_in_words(browser: Browser) -> None:
    for wrong in ("http_status=9", "since=yesterday", "status=odd", "cursor=x"):
        answer = await browser.get(f"/dashboard/search?{wrong}")
        assert answer.status_code in (400, 422)
        assert 'role="alert"' in answer.text


# ---- endpoint ---------------------------------------------------------------------------------------------------------


async def test_an_endpoint_shows_its_health_what_waits_and_what_is_dead(
    sql: Any, tenant: TenantClient, browser: Browser
) -> None:
    _, endpoint, _ = await delivered(sql, tenant)
    uuid = endpoint_uuid(endpoint)
    event, seq = await append_event(sql, tenant.uuid, [uuid])
    await add_waiting(sql, tenant.uuid, event, uuid, seq, reason="rate_limited")
    dead, _ = await append_event(sql, tenant.uuid, [uuid])
    await add_dead(sql, tenant.uuid, dead, uuid, reason="deadline")
    told = text_of(await browser.shown(f"/dashboard/endpoints/{endpoint['endpoint_id']}"))
    for words in ("rate_limited", "deadline", "Breaker closed", "after 5 s, doubling to 3 h", "signs", "next retry"):
        assert words in told or words == "next retry", words
    assert show_id("evt", event) in told and show_id("evt", dead) in told


async def test_an_endpoint_whose_breaker_is_open_can_be_paused_and_its_breaker_closed(
    sql: Any, tenant: TenantClient, browser: Browser
) -> None:
    endpoint = await tenant.endpoint()
    await sql.execute(
        "insert into breakers (tenant_id, origin, state, since, reopen_at)"
        " values ($1, 'https://example.com', 'open', now(), now() + interval '1 hour')",
        tenant.uuid,
    )
    page = await browser.shown(f"/dashboard/endpoints/{endpoint['endpoint_id']}")
    assert "Close the breaker" in page and ">Pause<" in page


async def test_an_endpoint_is_paused_resumed_tested_rotated_edited_and_deleted(
    tenant: TenantClient, browser: Browser, submitted: Submitted
) -> None:
    answer = await browser.post(
        "/dashboard/endpoints/new",
        {"url": "https://example.com/a", "events": "invoice.* order.paid", "rate_limit": "5"},
    )
    assert answer.status_code == 303, answer.text
    path = answer.headers["location"].partition("/secret")[0]
    api = "/v1/webhook_endpoints/" + path.rpartition("/")[2]
    made = (await tenant.get(api)).json()
    assert (made["events"], made["rate_limit"], made["retry"]["base_s"]) == (["invoice.*", "order.paid"], 5.0, 5.0)

    await browser.post(f"{path}/pause")
    assert (await tenant.get(api)).json()["status"] == "paused"
    assert "paused (by request)" in text_of(await browser.shown(path))
    await browser.post(f"{path}/resume")
    assert (await tenant.get(api)).json()["status"] == "enabled"

    assert (await browser.post(f"{path}/test")).headers["location"].startswith("/dashboard/events/evt_")
    assert submitted.calls[0][1] == "hookpost.test"

    before = (await tenant.get(f"{api}/secret")).json()["secret"]
    assert (await browser.post(f"{path}/rotate", {"grace_period_s": "3600"})).status_code == 303
    page = await browser.shown(f"{path}/secret")
    assert before in page and (await tenant.get(f"{api}/secret")).json()["secret"] in page
    assert before not in await browser.shown(path), "secrets are on their own page alone"
    assert re.search(r"signs for another (59 min|1 h)", text_of(await browser.shown(path)))

    edit = await browser.shown(f"{path}/edit")
    assert 'name="base_s" type="number" step="any" min="0" value=""' in edit, "a default is not pinned by saving"
    answer = await browser.post(f"{path}/edit", {"url": "https://example.com/b", "max_attempts": "3"})
    assert answer.status_code == 303, answer.text
    changed = (await tenant.get(api)).json()
    assert (changed["url"], changed["retry"]["max_attempts"], changed["events"]) == ("https://example.com/b", 3, ["*"])
    answer = await browser.post(f"{path}/edit", {"url": "ftp://example.com/", "max_attempts": "3"})
    assert answer.status_code == 422
    assert 'role="alert"' in answer.text and 'value="ftp://example.com/"' in answer.text

    assert (await browser.post(f"{path}/delete")).status_code == 303
    await browser.shown(path, 404)


async def test_a_bulk_replay_is_counted_before_it_begins(sql: Any, tenant: TenantClient, browser: Browser) -> None:
    endpoint = await tenant.endpoint()
    uuid = endpoint_uuid(endpoint)
    for _ in range(3):
        event, _ = await append_event(sql, tenant.uuid, [uuid])
        await add_dead(sql, tenant.uuid, event, uuid)
    query = f"endpoint_id={endpoint['endpoint_id']}&status=dead"
    assert "3 deliveries match" in text_of(await browser.shown(f"/dashboard/replays/new?{query}"))
    fields = {"endpoint_id": endpoint["endpoint_id"], "status": "dead", "rate_limit": "10"}
    answer = await browser.post("/dashboard/replays", fields)
    page = await browser.shown(answer.headers["location"])
    assert '<progress max="3" value="0"' in page
    await browser.post(answer.headers["location"] + "/cancel")
    assert "cancelled" in text_of(await browser.shown(answer.headers["location"]))
    assert "cancelled" in text_of(await browser.shown("/dashboard/replays"))


# ---- dead letters, overview, tenants ----------------------------------------------------------------------------------


async def test_dead_letters_are_grouped_filtered_and_replayed(
    sql: Any, tenant: TenantClient, browser: Browser, operator: Browser
) -> None:
    endpoint = await tenant.endpoint()
    uuid = endpoint_uuid(endpoint)
    event, _ = await append_event(sql, tenant.uuid, [uuid])
    await add_dead(sql, tenant.uuid, event, uuid, reason="deadline")
    page = await browser.shown("/dashboard/dead-letters")
    assert show_id("evt", event) in page and "deadline" in text_of(page)
    assert show_id("evt", event) not in await browser.shown("/dashboard/dead-letters?reason=http_4xx")
    filtered = f"/dashboard/dead-letters?reason=deadline&endpoint_id={endpoint['endpoint_id']}"
    assert f"of {endpoint['url']} alone" in text_of(await browser.shown(filtered)), "which filter is on"
    assert "of the newest" not in page, "all of them are counted"
    assert "/dashboard/replays/new" not in await operator.shown("/dashboard/dead-letters"), "a replay is of one tenant"
    assert "/dashboard/replays/new" in await operator.shown(filtered)
    all_of_them = re.search(r'href="(/dashboard/replays/new[^"]+)"', await browser.shown(filtered))
    assert all_of_them
    assert "1 delivery matches" in text_of(await browser.shown(unescape(all_of_them[1])))
    none_of_them = all_of_them[1].replace("deadline", "http_4xx")
    assert "0 deliveries match" in text_of(await browser.shown(unescape(none_of_them)))
    chosen = re.search(r'name="delivery" value="([^"]+)"', page)
    assert chosen
    for visitor in (browser, operator):
        answer = await visitor.post("/dashboard/dead-letters/replay", {"delivery": [chosen[1]]})
        assert answer.headers["location"] == "/dashboard/dead-letters?did=replayed", answer.text
    action = re.search(r'action="(/dashboard/dead-letters/replay[^"]+)"', await browser.shown(filtered))
    assert action
    answer = await browser.post(unescape(action[1]), {"delivery": [chosen[1]]})
    assert answer.headers["location"] == f"{filtered}&did=replayed", "the same filter shows what is left"
    assert (await browser.post("/dashboard/dead-letters/replay")).status_code == 422


async def test_whoever_has_posted_nothing_yet_is_told_how_and_sees_whose_key_it_is(
    tenant: TenantClient, browser: Browser, operator: Browser
) -> None:
    for visitor, query in ((browser, ""), (operator, f"?tenant_id={tenant.tenant_id}")):
        page = await visitor.shown(f"/dashboard{query}")
        assert "curl http://localhost/v1/events" in text_of(page) and "Nothing has happened here yet" in page
        assert "acme" in text_of(page), "the tenant's name"


async def test_the_overview_has_figures_and_plots_of_every_span(
    sql: Any, store: PostgresStore, tenant: TenantClient, browser: Browser, operator: Browser
) -> None:
    await delivered(sql, tenant)
    await sql.execute("update attempts set settle_no = 1; update progress set settle_no = 1")
    await store.roll_up(settles_max=100, events_max=100)
    for span in ("1h", "24h", "7d", "30d", "odd"):
        for visitor in (browser, operator):
            page = await visitor.shown(f"/dashboard?span={span}")
            assert page.count('<svg class="chart"') == 2
            assert re.search(r"<title>\d{4}-\d\d-\d\d \d\d:\d\d UTC\n[\d\u202f]+ attempts", page)
            assert "50.0 %" in text_of(page)
            assert "https://example.com/hook" in text_of(page), "the endpoint that failed is named"


async def test_the_admin_sees_tenants_by_name(sql: Any, tenant: TenantClient, operator: Browser) -> None:
    event_id, endpoint, _ = await delivered(sql, tenant)
    for path in (
        f"/dashboard/events/{event_id}", "/dashboard/endpoints", f"/dashboard/endpoints/{endpoint['endpoint_id']}",
        "/dashboard/search", "/dashboard/audit-log",
    ):  # fmt: skip
        link = re.search(
            rf'<a class="cut" href="/dashboard/tenants/{tenant.tenant_id}"[^>]*>([^<]+)<', await operator.shown(path)
        )
        assert link and link[1] == "acme", path
    await sql.execute("delete from api_keys; delete from endpoint_secrets; delete from endpoints; delete from tenants")
    assert tenant.tenant_id in text_of(await operator.shown("/dashboard/audit-log")), "a deleted one by its id"


async def test_the_admin_makes_tenants_and_keys_and_revokes_them(operator: Browser, stranger: Browser) -> None:
    answer = await operator.post("/dashboard/tenants", {"name": "Globex"})
    path = answer.headers["location"].partition("?")[0]
    answer = await operator.post(f"{path}/keys", {"name": "prod", "scopes": ["read", "replay"]})
    key = re.search(r'id="new-key">([^<]+)<', answer.text)
    assert key
    assert (await stranger.sign_in(key[1])).status_code == 303
    page = await operator.shown(path)
    assert key[1] not in page and "read, replay" in text_of(page)
    revoke = re.search(r'action="([^"]+/revoke)"', page)
    assert revoke
    assert (await operator.post(revoke[1])).status_code == 303
    assert "revoked" in text_of(await operator.shown(path))
    assert (await operator.post(path, {"name": "Globex 2", "max_in_flight": "7"})).status_code == 303
    assert "Globex 2" in await operator.shown("/dashboard/tenants")
    assert (await operator.post(f"{path}/keys", {"name": ""})).status_code == 422


async def test_what_is_done_in_a_browser_is_audited_by_the_key_that_signed_in(
    browser: Browser, tenant: TenantClient
) -> None:
    endpoint = await tenant.endpoint()
    await browser.post(f"/dashboard/endpoints/{endpoint['endpoint_id']}/pause")
    row = (await tenant.get("/v1/audit_log")).json()["data"][0]
    assert (row["action"], row["actor"], row["address"]) == (
        "endpoint.update", f"key_{tenant.key.split('_')[1]}", "192.0.2.7",
    )  # fmt: skip


async def test_looking_at_pages_that_show_no_secret_enters_nothing_in_the_audit_log(
    sql: Any, tenant: TenantClient, browser: Browser
) -> None:
    """An endpoint's page renews itself every few seconds."""
    event_id, endpoint, attempt_id = await delivered(sql, tenant)

    async def revealed() -> int:
        rows = (await tenant.get("/v1/audit_log")).json()["data"]
        return sum(row["action"] == "secret.reveal" for row in rows)

    page = f"/dashboard/endpoints/{endpoint['endpoint_id']}"
    assert "signs" in text_of(await browser.shown(page))
    await browser.shown(f"/dashboard/events/{event_id}/attempts/{attempt_id}")
    headers = f"webhook-id: {event_id}\nwebhook-timestamp: 1\nwebhook-signature: v1,AAAA"
    await browser.post("/dashboard/verifier", {"headers": headers, "body": "{}", "secret": "whsec_AAAA"})
    assert await revealed() == 0
    await browser.shown(f"{page}/secret")
    assert await revealed() == 1


async def test_what_is_done_here_is_in_the_audit_log_by_name(
    tenant: TenantClient, browser: Browser, operator: Browser
) -> None:
    endpoint = await tenant.endpoint(description="<b>before</b>")
    await browser.post(f"/dashboard/endpoints/{endpoint['endpoint_id']}/pause")
    page = await browser.shown("/dashboard/audit-log")
    told = text_of(page)
    assert "endpoint.update" in told and endpoint["endpoint_id"] in told and "key_" in told
    assert "<b>before" not in page
    assert endpoint["endpoint_id"] not in await browser.shown("/dashboard/audit-log?action=tenant.create")
    assert endpoint["endpoint_id"] in await operator.shown(f"/dashboard/audit-log?tenant_id={tenant.tenant_id}")
