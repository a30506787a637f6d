"""Is this a command of ours, with options that it has?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import typer

from hookpost.app.cli import app


@cache
def _root() -> Any:
    return typer.main.get_command(app)


def unknown_command(words: Sequence[str]) -> str | None:
    """What of ``hookpost WORDS…`` does not exist; None: all of it does. Arguments are not looked at."""
    command = _root()
    rest = list(words)
    while rest and hasattr(command, "commands") and not rest[0].startswith("-"):
        if rest[0] not in command.commands:
            # `hookpost events EVENT` and `hookpost events` name their command themselves.
            return None if command.name == "events" else f"command {rest[0]}"
        command = command.commands[rest.pop(0)]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    given = {word.partition("=")[0] for word in rest if word.startswith("--")}
    unknown = sorted(given - options - {"--help"})
    return f"option {unknown[0]}" if unknown else None
