"""Telling alerts: an event once, mail and operator at least once, and an end to trying."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from ipaddress import ip_network
from typing import Any
from uuid import UUID

import certifi
import pytest
from standardwebhooks import Webhook
from uuid_utils.compat import uuid7

from hookpost.alerts import Alerts, OperatorUrl, Untold, alert_key
from hookpost.ingest import Ingest, IngestLimits
from hookpost.intake import Submission
from hookpost.mail import MailError, MailServer, send_mail
from hookpost.model import OperationalType
from hookpost.policy.alerts import TRIES_MAX, Alert
from hookpost.policy.egress import EgressPolicy
from hookpost.policy.signing import show_secret
from hookpost.storage.contract import Channel, DueAlert
from hookpost.storage.payloads import ObjectStore
from hookpost.storage.postgres.store import PostgresStore
from hookpost.transport import Transport
from tests.patience import PATIENCE_S
from tests.smtp import mailbox
from tests.storage.driver import new_endpoint, new_tenant
from tests.transport.receivers import answering, listening

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
BROKEN = b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"


def due(channel: Channel = Channel.OPERATOR, tries: int = 1) -> DueAlert:
    alert = Alert(OperationalType.ENDPOINT_FAILING, uuid7(), uuid7(), b'{"type":"hookpost.endpoint.failing"}')
    return DueAlert(uuid7(), channel, alert, tries, "ops@example.com")


class Shelf:
    """A store of alerts alone, that remembers what became of them."""

    def __init__(self, *alerts: DueAlert) -> None:
        self.alerts = list(alerts)
        self.finished: list[UUID] = []
        self.postponed: list[tuple[UUID, float]] = []

    async def gather_alerts(self, channels: Any, *, limit: int) -> int:
        return 0

    async def claim_alerts(self, channel: Channel, *, limit: int, lease_s: float) -> list[DueAlert]:
        claimed, self.alerts = self.alerts, []
        return claimed

    async def finish_alert(self, alert: DueAlert) -> None:
        self.finished.append(alert.alert_id)

    async def postpone_alert(self, alert: DueAlert, *, wait_s: float) -> None:
        self.postponed.append((alert.alert_id, wait_s))


def failing(error: Exception) -> Callable[[DueAlert], Awaitable[None]]:
    async def tell(_: DueAlert) -> None:
        raise error

    return tell


@pytest.mark.parametrize(
    ("channel", "tries", "error", "again_s"),
    [
        (Channel.MAIL, 1, Untold("busy"), 10.0),
        (Channel.OPERATOR, 3, Untold("down"), 40.0),
        (Channel.OPERATOR, 1, RuntimeError("a bug of ours"), 10.0),
        (Channel.MAIL, TRIES_MAX, Untold("busy"), None),
        (Channel.MAIL, 1, Untold("no such mailbox", final=True), None),
        # The store will be back one day, and then the event is stored.
        (Channel.EVENT, 10 * TRIES_MAX, Untold("the store is away"), 3600.0),
    ],
)
async def test_what_was_not_told_is_tried_again_later_and_not_for_ever(
    channel: Channel, tries: int, error: Exception, again_s: float | None
) -> None:
    alert = due(channel, tries)
    shelf = Shelf(alert)
    await Alerts(shelf, {channel: failing(error)}).tell(channel)
    assert shelf.postponed == ([] if again_s is None else [(alert.alert_id, again_s)])
    assert shelf.finished == ([alert.alert_id] if again_s is None else [])


async def test_one_alert_that_fails_does_not_keep_the_others_from_being_told() -> None:
    alerts = [due() for _ in range(3)]
    shelf = Shelf(*alerts)

    async def tell(each: DueAlert) -> None:
        if each is alerts[1]:
            raise Untold("down")

    await Alerts(shelf, {Channel.OPERATOR: tell}).tell(Channel.OPERATOR)
    assert shelf.finished == [alerts[0].alert_id, alerts[2].alert_id]


# ---- events ----------------------------------------------------------------------------------------------------------


async def test_an_alert_whose_teller_died_between_append_and_delete_is_one_event(
    store: PostgresStore, sql: Any
) -> None:
    tenant = await new_tenant(store)
    about = await new_endpoint(store, tenant, ["hookpost.*"])
    subscriber = await new_endpoint(store, tenant, ["hookpost.endpoint.failing"])
    await new_endpoint(store, tenant, ["*"])
    ingest = Ingest(store, ObjectStore("memory:///"), now=time.time, limits=IngestLimits(timeout_s=PATIENCE_S))
    alert = Alert(OperationalType.ENDPOINT_FAILING, tenant, about, b'{"n":1}')
    taken = DueAlert(uuid7(), Channel.EVENT, alert, 1, None)
    for _ in range(2):
        [answer] = await ingest.submit(
            tenant, [Submission(alert.type, alert.payload, key=alert_key(taken), without=about)]
        )
        assert answer.delivery_count == 1  # type: ignore[union-attr]
    await ingest.close()
    [row] = await sql.fetch("select type, payload, owed from events")
    assert (row["type"], row["payload"]) == ("hookpost.endpoint.failing", b'{"n":1}')
    assert row["owed"] == [subscriber]


# ---- the operator's URL ----------------------------------------------------------------------------------------------


async def test_the_operator_gets_a_signed_post_and_a_failure_of_its_own_is_no_success() -> None:
    key = b"k" * 24
    transport = Transport(egress=EgressPolicy(allow_networks=(ip_network("127.0.0.0/8"),)), now=time.time)
    async with listening(answering(OK, BROKEN)) as receiver:
        way = OperatorUrl(
            receiver.url("/alerts"), [key], send=transport.send, now=time.time, user_agent="Hookpost/test"
        )
        alert = due()
        await way.tell(alert)
        with pytest.raises(Untold, match="http_5xx 500"):
            await way.tell(alert)
        head, _, body = receiver.requests[0].partition(b"\r\n\r\n")
        headers = {n.lower(): v.strip() for n, _, v in (x.partition(":") for x in head.decode().split("\r\n")[1:])}
        Webhook(show_secret(key)).verify(body, headers)
        assert body == alert.alert.payload
        assert headers["webhook-id"] == f"alert_{alert.alert_id.hex}"
    await transport.close()


async def test_the_operators_url_has_no_way_around_the_egress_rules() -> None:
    transport = Transport(egress=EgressPolicy(), now=time.time)
    async with listening(answering(OK)) as receiver:
        way = OperatorUrl(receiver.url(), [], send=transport.send, now=time.time, user_agent="Hookpost/test")
        with pytest.raises(Untold, match="address_forbidden"):
            await way.tell(due())
        assert receiver.connections == 0
    await transport.close()


# ---- mail ------------------------------------------------------------------------------------------------------------


def server(port: int, **changes: Any) -> MailServer:
    return MailServer(
        **{
            "host": "127.0.0.1",
            "port": port,
            "sender": "hookpost@example.org",
            "security": "none",
            "ca_file": certifi.where(),
            **changes,
        }
    )


async def send(to: MailServer, recipient: str = "ops@example.com") -> None:
    await send_mail(to, recipient, message_id="m1", subject="It fails", text="Read this:\nbücher", now=1.8e9)


async def test_a_mail_arrives_as_it_was_written() -> None:
    async with mailbox() as box:
        await send(server(box.port))
        [message] = box.messages
        assert (message["To"], message["From"]) == ("ops@example.com", "hookpost@example.org")
        assert (message["Subject"], message["Message-ID"]) == ("It fails", "<m1@example.org>")
        assert message["Auto-Submitted"] == "auto-generated"
        assert message.get_content().splitlines() == ["Read this:", "bücher"]


@pytest.mark.parametrize(("refusal", "final"), [("550 no such mailbox", True), ("450 busy", False)])
async def test_a_refused_recipient_is_final_when_the_server_says_so(refusal: str, final: bool) -> None:
    async with mailbox() as box:
        box.refusal = refusal
        with pytest.raises(MailError, match=refusal) as caught:
            await send(server(box.port))
        assert caught.value.final is final
        assert box.messages == []


async def test_a_server_that_does_not_encrypt_gets_no_mail_when_it_should() -> None:
    async with mailbox() as box:
        with pytest.raises(MailError, match="STARTTLS"):
            await send(server(box.port, security="starttls"))
        assert (box.recipients, box.messages) == ([], [])


async def test_a_server_that_is_not_there_is_tried_again() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(MailError) as caught:
            await asyncio.wait_for(send(server(closed.getsockname()[1])), PATIENCE_S)
    assert not caught.value.final
