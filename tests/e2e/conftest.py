"""With HOOKPOST_E2E_JOURNAL (`make kafka`) all scenarios run on a journal in Kafka, but for those named here."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from tests.e2e.harness import BROKERS

WITHOUT_KAFKA = {
    "test_f31_old_processes_deliver_on_the_new_schema_and_new_ones_take_over_what_they_left":
        "the release before knows no Kafka",
    "test_f33_a_dump_restored_elsewhere_goes_on_from_where_it_was_taken":
        "two databases on one topic would both deliver what is posted to either; test_restore is about a restore",
    "test_what_the_archive_holds_as_delivered_is_not_sent_again_and_what_was_owed_is":
        "it counts what the archive owes, and Kafka still has what came after it; test_restore is about a restore",
    "test_f6_a_store_that_hangs_is_a_503_within_a_second_and_nothing_acknowledged_is_lost":
        "PostgreSQL is not what a 202 waits for: tests/kafka has its own about both stores",
    "test_a_flood_of_large_events_in_front_of_a_store_that_hangs_stays_in_bounds":
        "the same",
    "test_events_go_out_by_told_rows_and_a_killed_process_loses_none":
        "what is in Kafka has no place in the journal yet, and nobody is told of it",
}  # fmt: skip
"""Scenarios that make no sense there, with the reason."""


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    if not os.environ.get(BROKERS):
        return
    for item in items:
        reason = WITHOUT_KAFKA.get(getattr(item, "originalname", ""))
        if reason is not None and item.path.parent.name == "e2e":
            item.add_marker(pytest.mark.skip(reason=f"with Kafka: {reason}"))
