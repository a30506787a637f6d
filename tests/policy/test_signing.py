"""Standard Webhooks (I11): the published vectors, the reference library as judge, and what must be refused."""

from base64 import b64encode
from datetime import UTC, datetime

import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

from hookpost.model import Secret
from hookpost.policy.signing import (
    SecretError,
    VerificationError,
    acknowledged,
    expected_acks,
    parse_secret,
    show_secret,
    signature_header,
    valid_keys,
    verify,
)

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
KEY = parse_secret(SECRET)
ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
AT = 1614265330
BODY = b'{"test": 2432232314}'
GOOD = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    ("secret", "message_id", "timestamp", "body", "expected"),
    [
        pytest.param(SECRET, ID, AT, BODY, GOOD, id="T1"),
        pytest.param(
            "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
            "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk",
            1649367553,
            b'{"email":"test@example.com","username":"test_user"}',
            "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
            id="T2",
        ),
        pytest.param(SECRET, ID, AT, b"", "v1,v48jdbgvh29KJz2Qc+ghw8G6vG3nAKnujWBg8oM/62A=", id="T4-empty"),
        pytest.param(
            SECRET, ID, AT, '{"t":"héllo 😀"}'.encode(), "v1,iaNep7koA7BolTwm3VqHdZ6TrCfmIpsb4IEsIFA2+0U=", id="T5-utf8"
        ),
        pytest.param(
            SECRET, ID, AT, b"\xff\x00\x01", "v1,UXo8Mp0ThKdRGqf/8PlG0ijMZVi1sRMdKoerotmhk1k=", id="T6-binary"
        ),
        pytest.param(SECRET, ID, AT, b'{"a": 1}', "v1,PmHqEg9dYr7CpRnQI4PueInII77cpHGMnr1LDdgOs9Y=", id="T7-space"),
        pytest.param(SECRET, ID, AT, b'{"a":1}', "v1,eWbO+OPhT2JUpF3dbJUxlLHb0oUfKtdFE1jL2Ow+m/U=", id="T7-no-space"),
    ],
)
def test_the_published_vectors(secret: str, message_id: str, timestamp: int, body: bytes, expected: str) -> None:
    assert signature_header(message_id, timestamp, body, [parse_secret(secret)]) == expected
    headers = {"webhook-id": message_id, "webhook-timestamp": str(timestamp), "webhook-signature": expected}
    verify(headers, body, [parse_secret(secret)], now=timestamp)


@given(
    key=st.binary(min_size=24, max_size=64),
    message_id=st.text("abcdefghijklmnopqrstuvwxyz0123456789_", min_size=1, max_size=64),
    body=st.text().map(str.encode),
)
def test_the_reference_library_accepts_what_we_sign_and_signs_what_we_accept(
    key: bytes, message_id: str, body: bytes
) -> None:
    judge = standardwebhooks.Webhook(show_secret(key))
    at = datetime.now(tz=UTC)
    timestamp = int(at.timestamp())
    ours = signature_header(message_id, timestamp, body, [key])
    assert judge.sign(msg_id=message_id, timestamp=at, data=body.decode()) == ours
    headers = {"Webhook-Id": message_id, "Webhook-Timestamp": str(timestamp), "Webhook-Signature": ours}
    verify(headers, body, [key], now=timestamp)


@given(key=st.binary(min_size=24, max_size=64))
def test_a_secret_survives_being_shown_with_and_without_padding(key: bytes) -> None:
    assert parse_secret(show_secret(key)) == parse_secret(show_secret(key).rstrip("=")) == key


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "starts with whsec_"),
        ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "starts with whsec_"),
        ("whsec_", "24 to 64 bytes"),
        (show_secret(b"x" * 23), "24 to 64 bytes"),
        (show_secret(b"x" * 65), "24 to 64 bytes"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2La-_Sw", "base64"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8I LPZIo2LaLaSw", "base64"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwé", "base64"),
        (show_secret(b"x" * 25)[:-3] + "B==", "altered"),
        (show_secret(b"x" * 25)[:-1], "base64"),
    ],
)
def test_what_is_no_secret_is_refused_with_the_reason(text: str, says: str) -> None:
    with pytest.raises(SecretError, match=says):
        parse_secret(text)


def test_valid_keys_are_newest_first_and_end_with_their_expiry() -> None:
    old = Secret(key=b"old", created_at=1.0, expires_at=100.0)
    new = Secret(key=b"new", created_at=2.0)
    assert valid_keys([old, new], now=99.9) == [b"new", b"old"]
    assert valid_keys([old, new], now=100.0) == [b"new"]
    assert valid_keys([], now=0.0) == []


def test_each_key_signs_in_the_given_order_and_either_verifies() -> None:
    """I13."""
    other = b"k" * 32
    header = signature_header(ID, AT, BODY, [other, KEY])
    assert header.split(" ")[1] == GOOD
    headers = {"webhook-id": ID, "webhook-timestamp": str(AT), "webhook-signature": header}
    for key in (KEY, other):
        verify(headers, BODY, [key], now=AT)


def _refused(says: str, *, now: int = AT, body: bytes = BODY, **changed: str) -> None:
    headers = {"webhook-id": ID, "webhook-timestamp": str(AT), "webhook-signature": GOOD}
    headers |= {name.replace("_", "-"): value for name, value in changed.items()}
    with pytest.raises(VerificationError, match=says):
        verify(headers, body, [KEY], now=now)


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_s20_a_missing_header_is_named(name: str) -> None:
    headers = {"webhook-id": ID, "webhook-timestamp": str(AT), "webhook-signature": GOOD}
    del headers[name]
    with pytest.raises(VerificationError, match=name):
        verify(headers, BODY, [KEY], now=AT)


@pytest.mark.parametrize(
    "timestamp", ["1614265330.5", " 1614265330", "+1614265330", "-1", "1e9", "०", "9" * 5000, "01614265330", "x"]
)
def test_s20_a_timestamp_that_is_no_plain_integer_is_refused(timestamp: str) -> None:
    _refused("webhook-timestamp", webhook_timestamp=timestamp)


def test_s20_the_tolerance_holds_in_both_directions() -> None:
    _refused("too old", now=AT + 301)
    _refused("too new", now=AT - 301)
    headers = {"webhook-id": ID, "webhook-timestamp": str(AT), "webhook-signature": GOOD}
    verify(headers, BODY, [KEY], now=AT + 300)
    verify(headers, BODY, [KEY], now=AT - 300)


@pytest.mark.parametrize(
    ("signature", "says"),
    [
        ("garbage", "no v1 signature"),
        ("v1", "no v1 signature"),
        ("v2," + GOOD[3:], "no v1 signature"),
        ("v1a," + GOOD[3:], "no v1 signature"),
        ("V1," + GOOD[3:], "no v1 signature"),
        ("v1,", "base64 of 32 bytes"),
        (GOOD[:-5], "base64 of 32 bytes"),
        ("v1,é", "base64 of 32 bytes"),
        ("v1," + "A" * 43 + "=", "none of the 1 v1 signatures matches"),
        (" ".join([GOOD] * 100), "more than 64"),
    ],
)
def test_s20_a_bad_signature_is_refused_with_the_reason(signature: str, says: str) -> None:
    _refused(says, webhook_signature=signature)


def test_s20_a_good_signature_among_others_and_extra_spaces_verifies() -> None:
    header = f"  v1a,xyz  garbage v1,AAAA {GOOD} "
    verify({"webhook-id": ID, "webhook-timestamp": str(AT), "webhook-signature": header}, BODY, [KEY], now=AT)


def test_s20_another_body_id_or_a_shifted_dot_does_not_verify() -> None:
    _refused("matches", body=BODY + b" ")
    _refused("matches", webhook_id="msg_other")
    signed = signature_header("a", AT, b"1.x", [KEY])
    headers = {"webhook-id": f"a.{AT}", "webhook-timestamp": "1", "webhook-signature": signed}
    with pytest.raises(VerificationError):
        verify(headers, b"x", [KEY], now=1)


def test_s20_an_id_that_is_no_text_is_refused_not_raised() -> None:
    _refused("webhook-id", webhook_id="\ud800")


# ---- the signed ack -------------------------------------------------------------------------------------------------

ACK = signature_header(ID, AT, b"ack", [KEY])
EXPECTED = expected_acks(ID, AT, [KEY])


def _head(*fields: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 204 No Content", "date: now", *fields, "x-after: 1", "", ""]).encode()


def test_the_vector_of_an_ack() -> None:
    """Computed apart from our code: ``printf %s ID.AT.ack | openssl dgst -sha256 -mac HMAC -macopt hexkey:… -binary``."""
    assert ACK == "v1,0/9X+tZXdjJMO6e4nUXoTv0ZuL7yrIG0AI07tCKfawE="
    assert [b64encode(digest).decode() for digest in EXPECTED] == [ACK.removeprefix("v1,")]


@pytest.mark.parametrize(
    "fields",
    [
        [f"webhook-ack: {ACK}"],
        [f"Webhook-Ack:{ACK}"],
        [f"WEBHOOK-ACK:\t  {ACK} \t"],
        [f"webhook-ack: v1,{'A' * 43}= v1a,xyz garbage {ACK}"],
        [f"webhook-ack: {ACK} v1,{'A' * 43}="],
        ["webhook-ack: v1,AAAA", f"webhook-ack: {ACK}"],
        [f"webhook-ack: v1,{'A' * 43}=, {ACK}"],
        [f"webhook-ack: {ACK},v1,{'A' * 43}="],
        ["webhook-ack:", f" {ACK}"],
        ["webhook-ack: garbage", f"\t{ACK}"],
    ],
)
def test_an_ack_counts_wherever_it_stands_in_the_field(fields: list[str]) -> None:
    assert acknowledged(_head(*fields), EXPECTED)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        ["webhook-ack:"],
        ["webhook-ack: v1,"],
        ["webhook-ack: ok"],
        [f"x-webhook-ack: {ACK}"],
        [f"webhook-ack-x: {ACK}"],
        [f"webhook-signature: {ACK}"],
        [f"x-echo: webhook-ack: {ACK}"],
        ["webhook-ack: garbage", f"x-next: {ACK}"],
        [f"webhook-ack: V1,{ACK[3:]}"],
        [f"webhook-ack: v2,{ACK[3:]}"],
        [f"webhook-ack: {ACK[3:]}"],
        [f"webhook-ack: v1{ACK}"],
        [f"webhook-ack: {ACK[:-1]}"],
        [f"webhook-ack: {ACK}="],
        [f"webhook-ack: {ACK[:-5]}"],
        [f"webhook-ack: {GOOD}"],
        [f"webhook-ack: {signature_header(ID, AT - 1, b'ack', [KEY])}"],
        [f"webhook-ack: {signature_header(ID + 'x', AT, b'ack', [KEY])}"],
        [f"webhook-ack: {signature_header(ID, AT, b'', [KEY])}"],
        [f"webhook-ack: {signature_header(ID, AT, b'ack', [b'k' * 24])}"],
        [f"webhook-ack: {' '.join(['v1,' + 'A' * 43 + '='] * 64)} {ACK}"],
    ],
)
def test_what_is_no_ack_of_this_attempt_does_not_count(fields: list[str]) -> None:
    assert not acknowledged(_head(*fields), EXPECTED)


def test_in_a_rotation_an_ack_by_any_valid_secret_counts() -> None:
    old, new = b"o" * 24, b"n" * 24
    expected = expected_acks(ID, AT, [new, old])
    for key in (old, new):
        assert acknowledged(_head("webhook-ack: " + signature_header(ID, AT, b"ack", [key])), expected)
    assert acknowledged(_head("webhook-ack: " + signature_header(ID, AT, b"ack", [KEY, old])), expected)


@given(st.binary(max_size=300))
def test_no_head_is_too_strange_to_be_judged(head: bytes) -> None:
    assert not acknowledged(head, EXPECTED)
    assert not acknowledged(b"HTTP/1.1 200 OK\r\nwebhook-ack: " + head, EXPECTED)
