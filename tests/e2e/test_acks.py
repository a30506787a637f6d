"""An endpoint that asks for a signed ack: only who knows its secret can say that the event has arrived."""

from __future__ import annotations

import asyncio

import pytest

from hookpost.policy.signing import parse_secret, signature_header
from tests.e2e.harness import Arrival, answer, receiver, running

pytestmark = pytest.mark.process


class Acks:
    """What the receiver answers with, the right ack when told to."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.kind = "missing"

    def right(self, arrival: Arrival) -> str:
        return signature_header(arrival.event_id, int(arrival.headers["webhook-timestamp"]), b"ack", [self.key])

    async def __call__(self, arrival: Arrival, writer: asyncio.StreamWriter) -> None:
        right = self.right(arrival)
        fields = {
            "missing": [],
            "wrong": ["webhook-ack: v1," + "A" * 43 + "="],
            "old": [f"webhook-ack: {signature_header(arrival.event_id, 1_700_000_000, b'ack', [self.key])}"],
            "right": [f"Webhook-Ack: {right}"],
        }[self.kind]
        writer.write(answer(200, b"ok", *fields))


async def test_only_a_right_ack_delivers_and_a_bad_one_is_tried_again_at_no_cost_to_the_endpoints_health() -> None:
    async with receiver() as hook, running() as server:
        endpoint = await server.endpoint(hook.url(), ack="signed", retry={"base_s": 0.5, "cap_s": 0.5})
        hook.handlers["/hook"] = acks = Acks(parse_secret(endpoint["secret"]))
        event_id = await server.post(payload={"n": 1})
        path = f"/v1/webhook_endpoints/{endpoint['endpoint_id']}"
        for number, kind in enumerate(("missing", "wrong", "old")):
            acks.kind = kind
            seen = len(hook.arrivals)
            await hook.until(lambda seen=seen: len(hook.arrivals) > seen)
            waiting = await server.polled(f"{path}/deliveries?status=waiting", lambda page: page["data"] != [])
            assert waiting["data"][0]["last_error_code"] == "bad_ack", (number, kind)
            assert waiting["data"][0]["last_http_status"] == 200
        acks.kind = "right"
        await server.settled(event_id)
        *bad, good = await server.attempts(event_id, 4)
        assert {(a["error_code"], a["outcome"], a["http_status"]) for a in bad} == {("bad_ack", "retry", 200)}
        assert (good["error_code"], good["outcome"]) == (None, "delivered")
        assert (await server.call("GET", path, expect=200))["status"] == "enabled"
        # Nobody asks it of those who were not told to.
        plain = await server.call("PATCH", path, {"ack": None}, expect=200)
        assert plain["ack"] is None
        acks.kind = "missing"
        await server.settled(await server.post(payload={"n": 2}))
