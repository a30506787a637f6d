"""N26: whatever makes requests to addresses that somebody else has chosen, and whichever way they leave, the verdict is one."""

from __future__ import annotations

import asyncio
import time

import pytest

from hookpost.app.compose import alert_egress, egress_policy
from hookpost.app.config import Settings, load
from hookpost.model import ErrorCode, Outcome, Request, Timeouts
from hookpost.policy.egress import EgressPolicy
from hookpost.transport import Transport
from tests.patience import PATIENCE_S

CALLERS = {"deliveries and tests": egress_policy, "the operator's alert URL": alert_egress}
WAYS: dict[str, dict[str, str]] = {"direct": {}, "through a proxy": {"egress_proxy": "http://127.0.0.1:1"}}
ATTACKS = {
    "N1": "http://127.0.0.1/",
    "N2": "http://169.254.169.254/latest/meta-data/",
    "N3": "http://[::]/",
    "N4": "http://[::ffff:169.254.169.254]/",
    "N5": "http://[::5efe:7f00:1]/",
    "N6": "http://[64:ff9b::a9fe:a9fe]/",
    "N7-6to4": "http://[2002:7f00:1::]/",
    "N7-teredo": "http://[2001:0:1::1]/",
    "N8-decimal": "http://2130706433/",
    "N8-hex": "http://0x7f000001/",
    "N8-octal": "http://0177.0.0.1/",
    "N8-short": "http://127.1/",
    "N9": "http://①②⑦.⓪.⓪.①/",
    "N10": "http://localhost/",
    "N18": "http://[fd00:ec2::254]/",
    "N19": "http://255.255.255.255/",
    "N20": "http://[fe80::1%25eth0]/",
    "N21": "http://8.8.8.8:5432/",
    "U1": "http://user:pw@127.0.0.1/",
    "U6": "file:///etc/passwd",
    "U6-gopher": "gopher://127.0.0.1/",
}
OPENED_TO_OPERATORS = {"N21"}  # their own URL may have any port from 1024 up


async def outcome_of(policy: EgressPolicy, url: str) -> Outcome:
    transport = Transport(egress=policy, now=time.time)
    ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    try:
        transport.send(Request(url, "", b"{}", Timeouts(60.0, 60.0, 60.0)), ended.set_result)
        return await asyncio.wait_for(ended, PATIENCE_S)
    finally:
        await transport.close()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("caller", CALLERS)
async def test_n26_every_caller_is_refused_every_attack(caller: str, way: str) -> None:
    settings: Settings = load(**WAYS[way])
    policy = CALLERS[caller](settings)
    for attack, url in ATTACKS.items():
        if caller.startswith("the operator") and attack in OPENED_TO_OPERATORS:
            continue
        outcome = await outcome_of(policy, url)
        assert outcome.error_code in {ErrorCode.ADDRESS_FORBIDDEN, ErrorCode.INVALID_URL}, (attack, outcome)
        assert outcome.request_bytes == 0


async def test_what_the_operator_opens_for_alerts_is_not_open_to_endpoints() -> None:
    settings = load(alert_allow_networks="127.0.0.0/8")
    assert (
        await outcome_of(egress_policy(settings), "http://127.0.0.1:1024/")
    ).error_code is ErrorCode.ADDRESS_FORBIDDEN
    assert (await outcome_of(alert_egress(settings), "http://127.0.0.1:1024/")).error_code is ErrorCode.CONNECT_REFUSED
    assert (
        await outcome_of(alert_egress(settings), "http://169.254.169.254/")
    ).error_code is ErrorCode.ADDRESS_FORBIDDEN
