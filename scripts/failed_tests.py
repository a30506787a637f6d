"""The tests that failed in the last run of pytest, a line each; fails when there are none, or more than so many.

    python scripts/failed_tests.py 3

None means that pytest did not come to its end, or that something else failed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

NOTES = Path(__file__).resolve().parent.parent / ".pytest_cache" / "v" / "cache" / "lastfailed"


def main(most: int, notes: Path = NOTES) -> int:
    """Print them; the exit code."""
    failed = sorted(json.loads(notes.read_text(encoding="utf-8"))) if notes.exists() else []
    if not 0 < len(failed) <= most:
        sys.stderr.write(f"{len(failed)} tests failed: not one to {most}, so nothing is tried again\n")
        return 1
    print("\n".join(failed))  # noqa: T201 - a command's answer
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
