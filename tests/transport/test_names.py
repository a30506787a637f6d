"""Names: how often they are looked up, what hangs, and what they may resolve to (attack list N11–N17)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE_S

pytestmark = pytest.mark.netns
SCRIPT = "tests.transport.namespace_scenarios"
ROOT = Path(__file__).parents[2]


def run(namespace: str, scenario: str) -> dict[str, Any]:
    command = ["ip", "netns", "exec", namespace, sys.executable, "-m", SCRIPT, scenario]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5 * PATIENCE_S, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_a_name_is_looked_up_once_for_many_requests(namespace: str) -> None:
    assert run(namespace, "counted") == {"statuses": [200] * 40, "asked": 1}


def test_an_old_answer_is_looked_up_again(namespace: str) -> None:
    assert run(namespace, "aged") == {"statuses": [200] * 5, "asked": 5}


def test_f17_sixty_names_that_hang_delay_nobody_else(namespace: str) -> None:
    result = run(namespace, "hanging")
    assert result["good"] == [200] * 10
    assert result["hung_before"] == 0, "the good names were answered while all others still hung"
    assert result["given_up"] == ["dns_failure"] * 3
    assert 500 <= result["given_up_ms"][0] <= result["given_up_ms"][1] < 60_000


def test_n12_rebinding_to_a_forbidden_address_is_caught(namespace: str) -> None:
    assert run(namespace, "rebinding") == {"codes": ["None", "address_forbidden", "address_forbidden", "None"]}


def test_n13_n14_n17_only_allowed_addresses_of_a_name_are_connected(namespace: str) -> None:
    result = run(namespace, "mixed")
    assert result["touched"] == 0
    assert result["codes"] == {
        "mixed.test": "None",
        "aaaa.test": "None",
        "only6.test": "address_forbidden",
        "mapped.test": "address_forbidden",
        "meta.test": "address_forbidden",
    }
    assert result["addresses"]["mixed.test"] == result["addresses"]["aaaa.test"] == "127.0.0.1"


def test_n16_every_way_of_having_no_address_is_a_dns_failure(namespace: str) -> None:
    result = run(namespace, "failing")
    assert result["codes"] == ["dns_failure"] * 3 + ["None"]
    assert result["details"][0].startswith("nx.test: ")


def test_n15_aliases_that_lead_inside_or_in_circles_reach_nothing_forbidden(namespace: str) -> None:
    found = run(namespace, "aliased")
    assert found["touched"] == 0
    assert found["codes"] == {
        "inside.test": "address_forbidden",
        "metadata.test": "address_forbidden",
        "circle.test": "dns_failure",
        "circles.test": "dns_failure",
        "long.test": "dns_failure",
        "good.test": "None",
    }
