"""The part of the storage suite that is about the journal, on Kafka: the same claims, each append by way of a record.

Left out is what an append that waits for a lock does, a claim that includes the order of `created_at`, which with Kafka is
when an event was accepted (test_journal has its own about numbers), and half a million ids (it has a fifth of them). How
rows are read does not depend on how they came in, and is not asked twice.
"""

import pytest

from tests.storage.test_append import (  # noqa: F401 - they are collected here
    test_a_later_call_gets_the_first_id_and_count_or_a_conflict,
    test_a_poisoned_event_is_rejected_and_its_group_writes_nothing,
    test_a_reader_never_sees_a_number_before_a_smaller_one,
    test_a_stale_append_leaves_the_keys_of_earlier_events_alone,
    test_a_stale_version_writes_nothing_at_all,
    test_an_append_and_a_replay_share_the_numbers,
    test_an_expired_key_is_free_again,
    test_keys_belong_to_their_tenant,
    test_many_equal_keys_over_all_shards_make_one_event,
    test_the_event_is_stored_as_it_was_given,
    test_the_same_event_appended_twice_is_a_duplicate_of_itself,
    test_within_one_group_the_first_of_a_key_wins,
)
from tests.storage.test_read import (  # noqa: F401
    test_a_control_row_names_its_deliveries_and_their_numbers,
    test_a_replay_brings_the_payload_of_its_event,
    test_rows_come_back_as_they_were_appended,
)

pytestmark = pytest.mark.kafka
