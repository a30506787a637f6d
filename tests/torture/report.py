"""The end of a run for people (a table) and for machines (one line of JSON, the last)."""

from __future__ import annotations

import json

from tests.torture.rig import Report


def figures(report: Report) -> dict[str, object]:
    """Everything that counts, by name."""
    books, verdict = report.books, report.verdict
    return {
        "seed": report.options.seed,
        "seconds": round(report.options.seconds),
        "kills": report.faults["kill"],
        "faults": {name: count for name, count in sorted(report.faults.items()) if name != "kill"},
        "skipped": report.unable,
        "accepted": len(books.accepted),
        "owed": sum(len(books.paths[accepted.type.partition(".")[0]]) for accepted in books.accepted),
        "arrivals": len(books.arrivals),
        "recorded": len(books.recorded),
        "lost": verdict.count("lost"),
        "invented": verdict.count("invented"),
        "dead": len(books.dead),
        "duplicates": verdict.duplicates,
        "duplicates_by": dict(verdict.explained),
        "unrecorded_by": dict(verdict.unrecorded),
        "senders_unknown": sum(arrival.sender is None for arrival in books.arrivals),
        "answers": dict(report.answers),
        "slowest_answer_s": {said: round(took, 2) for said, took in report.slowest_s.items()},
        "memory_mb": {kind: round(mb) for kind, mb in report.memory_mb.items()},
        "drained_s": round(report.drained_s, 1),
        "violations": {kind: len(found) for kind, found in verdict.violations.items() if found},
    }


def show(report: Report) -> None:
    """The violations, the table, the line."""
    found = figures(report)
    for line in report.verdict.lines():
        print(line)
    print()
    for name, value in found.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) or "none" if isinstance(value, dict) else value
        print(f"  {name:<18} {shown}")
    replay = f"python -m tests.torture --seed {report.options.seed} --minutes {report.options.seconds / 60:g}"
    replay += f" --kills {report.options.kills} --rate {report.options.rate:g}" + " --kafka" * report.options.kafka
    print(f"\n  the same faults again: {replay}\n")
    print(json.dumps({"scenario": "torture", **found}))
