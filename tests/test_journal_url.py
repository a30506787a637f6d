"""Where the journal is: the address, and that a database keeps the one it has."""

from __future__ import annotations

from uuid import UUID

import pytest
from uuid_utils import uuid7 as mint

from hookpost.app.compose import check_journal
from hookpost.app.config import ConfigError, describe, load
from hookpost.model import minted_at
from hookpost.policy.journal import CLOCK_MARGIN_S, copies, owed_now, parse_address


@pytest.mark.parametrize(
    ("url", "servers", "topic", "options"),
    [
        ("kafka://a", "a:9092", "hookpost.journal", {"security.protocol": "plaintext"}),
        ("kafka://a:1,b/t", "a:1,b:9092", "t", {"security.protocol": "plaintext"}),
        ("kafka://[::1]:7/t", "[::1]:7", "t", {"security.protocol": "plaintext"}),
        ("kafka://a/t?security=ssl&ca_file=/ca", "a:9092", "t", {"security.protocol": "ssl", "ssl.ca.location": "/ca"}),
        (
            "kafka://me:s%40me@a/t",
            "a:9092",
            "t",
            {
                "security.protocol": "sasl_ssl",
                "sasl.mechanism": "SCRAM-SHA-512",
                "sasl.username": "me",
                "sasl.password": "s@me",
            },
        ),
    ],
)
def test_an_address_names_brokers_topic_and_how_to_get_in(
    url: str, servers: str, topic: str, options: dict[str, str]
) -> None:
    found = parse_address(url)
    assert (found.servers, found.topic, found.options) == (servers, topic, options)


@pytest.mark.parametrize(
    "url",
    [
        "http://a",
        "kafka://",
        "kafka://a:x/t",
        "kafka://a,,b",
        "kafka://a/a topic",
        "kafka://a?color=red",
        "kafka://a?security=none",
        "kafka://a?security=sasl_ssl",
        "kafka://me:pw@a?security=ssl",
        "kafka://me:pw@a?mechanism=GSSAPI",
        "kafka://a?mechanism=PLAIN",
    ],
)
def test_an_address_that_means_nothing_is_refused_and_its_secret_not_shown(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOKPOST_JOURNAL_URL", url)
    with pytest.raises(ConfigError, match="HOOKPOST_JOURNAL_URL") as refused:
        load()
    assert "pw" not in str(refused.value)


def test_the_address_is_masked_and_large_inline_payloads_do_not_go_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOKPOST_JOURNAL_URL", "kafka://me:secret@a/t")
    [shown] = [each.shown for each in describe(load()) if each.variable == "HOOKPOST_JOURNAL_URL"]
    assert "secret" not in shown
    with pytest.raises(ConfigError, match="HOOKPOST_PAYLOAD_INLINE_MAX"):
        load(payload_inline_max=1024 * 1024 + 1)


@pytest.mark.parametrize(
    ("named", "alive", "made"),
    [
        (1, 1, 1),
        (1, 3, 3),  # one name for all
        (3, 5, 3),
        (2, 2, 2),
        (3, 2, None),  # one is away, and would be missed for ever
        (2, 1, None),
        (1, 0, None),
    ],
)
def test_a_topic_is_made_when_the_brokers_are_there_that_its_copies_are_for(
    named: int, alive: int, made: int | None
) -> None:
    assert copies(",".join(["a:9092"] * named), alive=alive) == made


async def test_a_database_whose_journal_is_in_kafka_is_not_used_with_another_or_none(database: str) -> None:
    await check_journal(load(), database)
    mine = load(journal_url="kafka://a/mine")
    with pytest.raises(ConfigError, match="run `hookpost migrate`"):
        await check_journal(mine, database)
    await check_journal(mine, database, claim=True)
    await check_journal(mine, database)
    with pytest.raises(ConfigError, match="is kafka topic mine, and HOOKPOST_JOURNAL_URL says kafka topic other"):
        await check_journal(load(journal_url="kafka://a/other"), database, claim=True)
    with pytest.raises(ConfigError, match="HOOKPOST_JOURNAL_URL says nothing"):
        await check_journal(load(), database)


def test_an_event_is_owed_to_all_it_was_accepted_for_and_to_whoever_was_there() -> None:
    def at(seconds: float) -> UUID:
        return UUID(bytes=mint(nanoseconds=int(seconds * 1e9)).bytes)

    accepted_at = 1_800_000_000.0
    told, before, within, after = (at(accepted_at + by) for by in (-9, -5, CLOCK_MARGIN_S - 0.1, CLOCK_MARGIN_S + 0.1))
    assert minted_at(before) < accepted_at
    matching = [before, told, within, after]
    assert owed_now((told,), matching, without=None, accepted_at=accepted_at) == (told, before, within)
    assert owed_now((told,), matching, without=before, accepted_at=accepted_at) == (told, within)
    assert owed_now((told,), [], without=None, accepted_at=accepted_at) == (told,)
