"""API keys: what is made can be read, and nothing else can."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookpost.policy.keys import ParsedKey, hash_secret, make_key, parse_key, same_hash

KEY = make_key(bytes(range(8)), bytes(range(32)))


@given(st.binary(min_size=8, max_size=8), st.binary(min_size=32, max_size=32))
def test_a_made_key_is_read_back(key_id: bytes, secret: bytes) -> None:
    assert parse_key(make_key(key_id, secret)) == ParsedKey(key_id.hex(), secret.hex())


@given(st.integers(0, len(KEY) - 1), st.characters())
def test_a_mistyped_key_is_refused(position: int, character: str) -> None:
    mistyped = KEY[:position] + character + KEY[position + 1 :]
    assert mistyped == KEY or parse_key(mistyped) is None


@pytest.mark.parametrize("text", ["", "hpk_", KEY[:-1], KEY + "0", KEY + "\n", " " + KEY, KEY.upper(), "x" * 10_000])
def test_what_is_no_key_is_refused(text: str) -> None:
    assert parse_key(text) is None


def test_hashes_are_compared_as_a_whole() -> None:
    assert same_hash(hash_secret("a"), hash_secret("a"))
    assert not same_hash(hash_secret("a"), hash_secret("b"))
    assert len(hash_secret("\ud800")) == 32


def test_a_parsed_key_does_not_show_its_secret() -> None:
    assert "0102030405" not in repr(parse_key(KEY)).replace("0001020304050607", "")
