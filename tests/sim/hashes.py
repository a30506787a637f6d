"""Sets of texts are walked in an order that differs from process to process, unless their hashes are fixed."""

from __future__ import annotations

import os
import sys


def fix(module: str) -> None:
    """Begin this program, ``python -m module``, anew with hashes that are the same in every process, unless they are."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])
