"""The rig itself, on real processes: half a minute of `make torture`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import require
from tests.torture.books import OF_KAFKA, Fault
from tests.torture.rig import PRODUCERS

pytestmark = pytest.mark.process

# Other tests run beside it, and the machine may stand still; `make torture` has no such patience.
COMMAND = ["-m", "tests.torture", "--minutes", "0.5", "--kills", "8", "--seed", "1", "--rate", "60", "--patience", "10"]


def test_half_a_minute_of_every_fault_loses_nothing_invents_nothing_and_explains_every_duplicate() -> None:
    done = subprocess.run(
        [sys.executable, *COMMAND],
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["lost"], found["invented"], found["violations"]) == (0, 0, {})
    assert found["kills"] >= 8
    assert found["accepted"] >= len(PRODUCERS), "there was load, however slow the machine is"
    assert sum(found["duplicates_by"].values()) == found["duplicates"]
    # Every other fault came once at least; last, because what was possible has been judged by now.
    assert found["faults"].keys() | found["skipped"].keys() == set(Fault) - OF_KAFKA - {Fault.KILL}
    require(not found["skipped"], "; ".join(sorted(set(found["skipped"].values()))))
