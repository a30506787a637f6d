"""TLS of an endpoint's own: what is refused, what is kept, what is shown."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from hypothesis import given
from hypothesis import strategies as st

from hookpost.policy.tls import CHAIN_MAX, TlsError, check_authorities, check_identity, describe

NOW = datetime.now(UTC).timestamp()
CA = trustme.CA()
LEAF, OTHER = CA.issue_cert("client.example"), CA.issue_cert("other.example")
OLD = CA.issue_cert(
    "old.example", not_before=datetime(2019, 1, 1, tzinfo=UTC), not_after=datetime(2020, 1, 1, tzinfo=UTC)
)
CA_PEM = CA.cert_pem.bytes().decode()
CERT = "".join(blob.bytes().decode() for blob in LEAF.cert_chain_pems)
KEY = LEAF.private_key_pem.bytes().decode()


def key_text(key: object, password: bytes | None = None) -> str:
    how = NoEncryption() if password is None else BestAvailableEncryption(password)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how).decode()  # type: ignore[attr-defined, no-any-return]


def test_a_pair_that_belongs_together_is_kept_without_what_stood_around_it() -> None:
    cert, key = check_identity("Bag Attributes: x\n" + CERT + "\nrubbish", "# ours\n" + KEY, now=NOW)
    assert cert.startswith("-----BEGIN CERTIFICATE-----\n")
    assert key.startswith("-----BEGIN PRIVATE KEY-----\n")
    assert "rubbish" not in cert and "ours" not in key
    assert check_identity(cert, key, now=NOW) == (cert, key)


def test_what_is_shown_tells_certificates_apart_and_when_they_expire() -> None:
    [ca] = describe(check_authorities(CA_PEM, now=NOW))
    leaf = describe(check_identity(CERT, KEY, now=NOW)[0])[0]
    assert leaf.issuer == ca.subject != leaf.subject
    assert leaf.not_before < NOW < leaf.expires_at
    assert len(leaf.sha256) == 64
    assert leaf.sha256 != ca.sha256


WEAK = key_text(rsa.generate_private_key(65537, 1024))


@pytest.mark.parametrize(
    ("cert", "key", "named"),
    [
        ("", KEY, "PEM are expected"),
        ("nonsense", KEY, "PEM are expected"),
        (KEY, CERT, "PEM are expected"),
        ("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", KEY, "PEM are expected"),
        (CERT + "\ud800", KEY, "PEM are expected"),
        (CERT, "", "not a private key"),
        (CERT, CERT, "not a private key"),
        (CERT, "\ud800", "not a private key"),
        (CERT, KEY[:200], "not a private key"),
        (CERT, key_text(load_pem_private_key(KEY.encode(), None), b"pw"), "passphrase"),
        (CERT, WEAK, "1024 bits"),
        (CERT, key_text(x25519.X25519PrivateKey.generate()), "no use for"),
        (CERT, OTHER.private_key_pem.bytes().decode(), "belongs together"),
        (CA_PEM + CERT, KEY, "belongs together"),
        (OLD.cert_chain_pems[0].bytes().decode(), OLD.private_key_pem.bytes().decode(), "has expired"),
        (CERT * (CHAIN_MAX + 1), KEY, f"at most {CHAIN_MAX}"),
    ],
)
def test_a_pair_that_cannot_work_is_refused_with_the_reason(cert: str, key: str, named: str) -> None:
    with pytest.raises(TlsError, match=named) as refused:
        check_identity(cert, key, now=NOW)
    assert "PRIVATE KEY-----\n" not in str(refused.value)


def test_authorities_may_be_several_of_which_one_is_still_valid() -> None:
    old = OLD.cert_chain_pems[0].bytes().decode()
    assert len(describe(check_authorities(old + CA_PEM, now=NOW))) == 2
    with pytest.raises(TlsError, match="expired"):
        check_authorities(old, now=NOW)


@given(st.text(max_size=60), st.integers(0, len(CERT)), st.integers(0, len(CERT)))
def test_no_text_raises_anything_else(noise: str, start: int, end: int) -> None:
    for text in (noise, CERT[:start] + noise + CERT[end:]):
        try:
            check_authorities(text, now=NOW)
            check_identity(CERT, text, now=NOW)
        except TlsError as error:
            assert str(error)
