"""A fixed batch of requests made from the OpenAPI document, against a running server. `make fuzz` makes more."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.harness import ADMIN_KEY, running
from tests.fuzz.api import CLOSED_PORT, Tried, rounds, target

pytestmark = pytest.mark.process

SECONDS = 20.0
EXAMPLES = 2
SEED = 20


async def test_no_request_of_the_document_gets_a_5xx_or_an_answer_that_it_does_not_describe() -> None:
    async with running(egress_proxy=CLOSED_PORT) as server:
        at = await asyncio.to_thread(target, server.url, ADMIN_KEY)

        def batch() -> list[Tried]:
            return list(rounds(at, seconds=SECONDS, examples=EXAMPLES, seed=SEED))

        tried = await asyncio.to_thread(batch)
        assert sum(each.requests for each in tried) > 10
        assert [each.fault for each in tried if each.fault] == []
        assert [line for line in server.lines if "internal_error" in line or "Traceback" in line] == []
