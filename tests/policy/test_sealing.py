"""Secrets at rest: what opens, what does not, and what a text says that is no keyring."""

from __future__ import annotations

from base64 import b64encode
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookpost.policy import sealing
from hookpost.policy.sealing import Keyring, KeyringError, Locked, bound_to, choose_key, open_sealed, seal, unwrap, wrap

KEY, NONCE = b"k" * 32, b"n" * 12
ONE, OTHER = UUID(int=1), UUID(int=2)
PLACE = bound_to("endpoint_secrets", "sealed", ONE, OTHER, 5)
RING = Keyring({"k2": b"2" * 32, "k1": b"1" * 32})


@given(
    plain=st.binary(max_size=5000), key=st.binary(min_size=32, max_size=32), nonce=st.binary(min_size=12, max_size=12)
)
def test_what_is_sealed_opens_with_the_same_key_in_the_same_place(plain: bytes, key: bytes, nonce: bytes) -> None:
    sealed = seal(key, plain, bound=PLACE, nonce=nonce)
    assert open_sealed(key, sealed, bound=PLACE) == plain
    assert len(plain) < 16 or plain not in sealed[13:]


def test_the_cipher_is_aes_256_gcm() -> None:
    """NIST's test case 14 (McGrew and Viega, The Galois/Counter Mode of Operation): zero key, zero nonce, a zero block."""
    sealed = seal(bytes(32), bytes(16), bound=b"", nonce=bytes(12))
    assert sealed[13:].hex() == "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"


@pytest.mark.parametrize(
    "place",
    [
        bound_to("endpoint_secrets", "sealed", ONE, OTHER, 6),
        bound_to("endpoint_secrets", "sealed", OTHER, ONE, 5),
        bound_to("endpoint_secrets", "other", ONE, OTHER, 5),
        bound_to("endpoints", "sealed", ONE, OTHER, 5),
        b"",
    ],
)
def test_s6_what_is_copied_to_another_row_does_not_open(place: bytes) -> None:
    with pytest.raises(Locked, match=r"another row|altered"):
        open_sealed(KEY, seal(KEY, b"secret", bound=PLACE, nonce=NONCE), bound=place)


@given(at=st.integers(min_value=0, max_value=34), bit=st.integers(min_value=0, max_value=7))
def test_a_flipped_bit_is_found_wherever_it_is(at: int, bit: int) -> None:
    sealed = bytearray(seal(KEY, b"secret", bound=PLACE, nonce=NONCE))
    sealed[at] ^= 1 << bit
    with pytest.raises(Locked):
        open_sealed(KEY, bytes(sealed), bound=PLACE)


@pytest.mark.parametrize("cut", [0, 1, 12, 13, 28, 34])
def test_a_cut_value_does_not_open(cut: int) -> None:
    with pytest.raises(Locked):
        open_sealed(KEY, seal(KEY, b"secret", bound=PLACE, nonce=NONCE)[:cut], bound=PLACE)


def test_s7_a_missing_or_wrong_encryption_key_is_named_and_not_shown() -> None:
    wrapped = wrap(RING, "k1", KEY, tenant_id=ONE, nonce=NONCE)
    assert unwrap(RING, "k1", wrapped, tenant_id=ONE) == KEY
    with pytest.raises(Locked, match="the encryption key k1 is not configured here"):
        unwrap(Keyring({"k2": b"2" * 32}), "k1", wrapped, tenant_id=ONE)
    with pytest.raises(Locked, match="k1 is not the one") as wrong:
        unwrap(Keyring({"k1": b"3" * 32}), "k1", wrapped, tenant_id=ONE)
    assert "3333" not in str(wrong.value)
    for key_id, tenant in (("k2", ONE), ("k1", OTHER)):
        with pytest.raises(Locked):
            unwrap(RING, key_id, wrapped, tenant_id=tenant)


def test_what_is_new_is_wrapped_with_the_first_key_that_everybody_holds() -> None:
    assert choose_key(RING, []) == "k2"
    assert choose_key(RING, [["k1", "k2"], ["k2"]]) == "k2"
    assert choose_key(RING, [["k1", "k2"], ["k1"]]) == "k1", "a process that was not restarted yet must open it"
    assert choose_key(RING, [["k0"]]) == "k2"


def test_a_keyring_is_read_as_it_is_shown_and_hides_its_keys() -> None:
    text = ",".join(sealing.show_key(key_id, key) for key_id, key in RING.keys.items())
    assert sealing.parse_keyring(f" {text}\n") == RING
    assert RING.ids == ("k2", "k1")
    assert "222" not in repr(RING)


GOOD = b64encode(b"1" * 32).decode()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "1 to 16 encryption keys"),
        (",,", "1 to 16 encryption keys"),
        (GOOD, "encryption key 1 is not of the form"),
        (f"k1:{GOOD[:-2]}=", "encryption key 1"),
        ("k1:" + b64encode(b"1" * 24).decode(), "encryption key 1"),
        (f"k1:{GOOD},k 2:{GOOD}", "encryption key 2"),
        (f"k1:{GOOD},k1:" + b64encode(b"2" * 32).decode(), "two encryption keys with the id k1"),
        (f"k1:{GOOD},k2:{GOOD}", "k2 is the same as another"),
        (",".join(f"k{n}:" + b64encode(bytes([n]) * 32).decode() for n in range(17)), "there are 17"),
    ],
)
def test_a_text_that_is_no_keyring_is_refused_without_showing_it(text: str, said: str) -> None:
    with pytest.raises(KeyringError, match=said) as refused:
        sealing.parse_keyring(text)
    assert GOOD[:8] not in str(refused.value)
