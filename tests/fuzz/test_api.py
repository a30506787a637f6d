"""A fixed batch of requests made from the OpenAPI document, against a running server. `make fuzz` makes more."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.e2e.harness import ADMIN_KEY, running
from tests.fuzz.api import CLOSED_PORT, Tried, rounds, target
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.process

SECONDS = 20.0
EXAMPLES = 2
SEED = 20
REQUESTS_MIN = 10


async def test_no_request_of_the_document_gets_a_5xx_or_an_answer_that_it_does_not_describe() -> None:
    # A 503 for want of time is no fault that is looked for here.
    async with running(egress_proxy=CLOSED_PORT, ingest_timeout_s="60") as server:
        at = await asyncio.to_thread(target, server.url, ADMIN_KEY)

        def batch() -> list[Tried]:
            """So long, and longer where that is not enough for a few requests."""
            began, done = time.monotonic(), list[Tried]()
            for each in rounds(at, seconds=10 * PATIENCE_S, examples=EXAMPLES, seed=SEED):
                done.append(each)
                if time.monotonic() > began + SECONDS and sum(one.requests for one in done) > REQUESTS_MIN:
                    break
            return done

        tried = await asyncio.to_thread(batch)
        assert sum(each.requests for each in tried) > REQUESTS_MIN
        assert [each.fault for each in tried if each.fault] == []
        assert [line for line in server.lines if "internal_error" in line or "Traceback" in line] == []
