"""The examples do what they say."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from hookpost.policy.signing import show_secret
from tests.e2e.harness import WAIT_S, running

pytestmark = pytest.mark.process
EXAMPLES = Path(__file__).parents[2] / "examples"


async def test_the_receiver_verifies_what_the_producer_posted_and_signs_its_answer() -> None:
    secret = show_secret(b"0123456789abcdef01234567")
    async with running() as server:
        receiver = await asyncio.create_subprocess_exec(
            sys.executable, EXAMPLES / "receiver.py", "0",
            env={**os.environ, "HOOKPOST_SECRET": secret}, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            assert receiver.stdout is not None
            port = int((await receiver.stdout.readline()).split()[-1])
            await server.endpoint(f"http://127.0.0.1:{port}/hooks", secret=secret, ack="signed")
            producer = await asyncio.create_subprocess_exec(
                sys.executable, EXAMPLES / "producer.py",
                env={**os.environ, "HOOKPOST_URL": server.url, "HOOKPOST_API_KEY": server.key},
                stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            output, _ = await asyncio.wait_for(producer.communicate(), WAIT_S)
            assert producer.returncode == 0
            lines = output.decode().splitlines()
            assert lines[0] == "delivered"
            assert lines[1].startswith("delivered 204 ")
            received = (await asyncio.wait_for(receiver.stdout.readline(), WAIT_S)).decode().strip()
            assert received == 'invoice.paid {"invoice": 42, "amount": "99.90"}'
        finally:
            receiver.kill()
            await receiver.wait()
