"""F19: what comes of requests over a line that loses, delays or throttles: real packets, lost between two kernels' TCP."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE_S

pytestmark = pytest.mark.netns
ROOT = Path(__file__).parents[2]
TIMEOUTS = {"connect_timeout", "first_byte_timeout", "total_timeout"}
# A timeout is seen by the loop's next turn; the machine is busy.
LATE_MS = 30_000


# A line is as bad as it is meant to be while whoever plays it has its turn in time; what a machine that stood still for
# longer has delayed is looked at again, for so long.
STOOD_MS = 400
AGAIN_S = 1200.0


def run(namespace: str, scenario: str) -> dict[str, Any]:
    until = time.monotonic() + AGAIN_S
    while (found := once(namespace, scenario))["stood_ms"] > STOOD_MS and time.monotonic() < until:
        subprocess.run(["ip", "-n", namespace, "link", "del", "near"], check=True)
    # However bad it was: no request is left hanging, and the next one goes through.
    assert (found["in_flight"], found["last"]) == (0, 200)
    # What was called delivered has arrived.
    assert all(arrived for code, arrived in zip(found["codes"], found["arrived"], strict=True) if code is None)
    return found


def once(namespace: str, scenario: str) -> dict[str, Any]:
    command = ["ip", "netns", "exec", namespace, sys.executable, "-m", "tests.transport.bad_line", scenario]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5 * PATIENCE_S, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_f19_with_every_third_packet_lost_most_arrive_and_the_rest_time_out_in_time(namespace: str) -> None:
    found = run(namespace, "lossy")
    assert found["lost"] > 50
    assert found["codes"].count(None) >= 20
    assert set(found["codes"]) <= TIMEOUTS | {None}
    assert found["longest_ms"] <= 8000 + LATE_MS


def test_f19_three_seconds_of_latency_fit_into_the_usual_timeouts(namespace: str) -> None:
    found = run(namespace, "distant")
    assert found["codes"] == [None] * 5
    assert found["shortest_ms"] >= 6000 - 10


def test_f19_a_line_of_a_thousand_bytes_a_second_carries_what_fits_into_the_time_and_gives_up_the_rest(
    namespace: str,
) -> None:
    found = run(namespace, "narrow")
    assert found["codes"][0] is None
    assert found["codes"][1] in TIMEOUTS
    assert found["longest_ms"] <= 7000 + LATE_MS
