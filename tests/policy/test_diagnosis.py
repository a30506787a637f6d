"""The verifier names the mistake that was made."""

from __future__ import annotations

import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable

import pytest

from hookpost.policy.diagnosis import UNTOLD, Diagnosis, Known, diagnose, read_headers
from hookpost.policy.signing import show_secret, signature_header

KEY = bytes(range(24))
OTHER = bytes(range(24, 48))
SECRET = show_secret(KEY)
BODY = b'{"b": 1,\n "a": "\xc3\xa9"}'
AT = 1_700_000_000
ID = "evt_0190b7e8c0de7000800000000000abcd"


def message(**changes: str) -> dict[str, str]:
    headers = {
        "webhook-id": ID,
        "webhook-timestamp": str(AT),
        "webhook-signature": signature_header(ID, AT, BODY, [KEY]),
    }
    return headers | {name.replace("_", "-"): value for name, value in changes.items()}


def found(
    headers: dict[str, str], body: bytes = BODY, secret: str = SECRET, now: float = AT, known: Known | None = None
) -> Diagnosis:
    return diagnose(headers, body, secret, now, known)


def test_a_good_message_is_valid() -> None:
    assert found(message()).valid
    assert found(message(), now=AT + 299).valid


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (BODY + b"\n", "a line end was added"),
        (BODY.replace(b"\n", b"\r\n"), "became CR LF"),
        (b" " + BODY, "white space"),
        (b"\xef\xbb\xbf" + BODY, "byte order mark"),
    ],
)
def test_an_altered_body_is_named_by_how_it_was_altered(body: bytes, words: str) -> None:
    diagnosis = found(message(), body)
    assert not diagnosis.valid
    assert diagnosis.finding.startswith("Body altered") and words in diagnosis.finding


def test_a_body_that_was_parsed_and_written_again_is_recognised() -> None:
    compact = json.dumps(json.loads(BODY), separators=(",", ":"), ensure_ascii=False).encode()
    headers = message(webhook_signature=signature_header(ID, AT, compact, [KEY]))
    assert "written again as JSON" in found(headers).finding


@pytest.mark.parametrize(("now", "words"), [(AT + 4000, "too old"), (AT - 4000, "too new")])
def test_a_timestamp_out_of_tolerance_is_told_apart_from_a_wrong_signature(now: float, words: str) -> None:
    finding = found(message(), now=now).finding
    assert words in finding and "the signature fits" in finding


def spelled(show: Callable[[str], str]) -> dict[str, str]:
    return message(webhook_signature=show(signature_header(ID, AT, BODY, [KEY])))


def raw(signature: str) -> bytes:
    import base64

    return base64.b64decode(signature[3:])


@pytest.mark.parametrize(
    ("show", "words"),
    [
        (lambda s: "v1," + raw(s).hex(), "hexadecimal"),
        (lambda s: "sha256=" + raw(s).hex(), "hexadecimal"),
        (lambda s: s.rstrip("="), "padding"),
        (lambda s: s[3:], "v1, is missing"),
        (lambda s: "v1,AAAA", "no v1 signature"),
    ],
)
def test_a_signature_in_another_encoding_is_recognised(show: Callable[[str], str], words: str) -> None:
    finding = found(spelled(show)).finding
    assert finding.startswith("Wrong encoding") and words in finding


def test_base64url_is_recognised() -> None:
    stamp = next(
        stamp for stamp in range(AT, AT + 200)
        if set("+/") & set(signature_header(ID, stamp, BODY, [KEY])[3:])
    )  # fmt: skip
    digest = raw(signature_header(ID, stamp, BODY, [KEY]))
    headers = message(webhook_timestamp=str(stamp), webhook_signature="v1," + urlsafe_b64encode(digest).decode())
    assert "base64url" in found(headers).finding


@pytest.mark.parametrize("key", [SECRET.encode(), b64encode(KEY)])
def test_a_secret_that_was_not_decoded_is_recognised(key: bytes) -> None:
    headers = message(webhook_signature=signature_header(ID, AT, BODY, [key]))
    assert found(headers).finding.startswith("Wrong secret encoding")


def test_another_id_is_recognised() -> None:
    headers = message(webhook_id="msg_1", x_webhook_event_id=ID)
    assert found(headers).finding.startswith("Wrong id")
    headers = message(webhook_id="evt_2")
    assert found(headers) == UNTOLD
    assert found(headers, known=Known(ids=["evt_3", ID])).finding.startswith(f"Wrong id: the signature is for '{ID}'")


def test_another_secret_is_told_and_named_if_it_is_known() -> None:
    headers = message(webhook_signature=signature_header(ID, AT, BODY, [OTHER]))
    assert found(headers).finding.startswith("Wrong secret, or body altered")
    assert (
        found(headers, known=Known(BODY, [("ep_1", OTHER)])).finding == "Wrong secret: it was signed with that of ep_1."
    )


def test_what_is_on_record_tells_where_the_body_differs() -> None:
    diagnosis = found(message(), b'{"b": 2,\n "a": "e"}', known=Known(BODY))
    assert "from byte 6 on" in diagnosis.finding
    assert "were sent" in diagnosis.finding


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_header_is_named(name: str) -> None:
    assert name in found({key: value for key, value in message().items() if key != name}).finding


@pytest.mark.parametrize("secret", ["", "nonsense", "whsec_!!", "whsec_AAAA"])
def test_what_is_no_secret_is_said(secret: str) -> None:
    assert found(message(), secret=secret).finding.startswith("Wrong secret format")


@pytest.mark.parametrize("stamp", ["today", "1e9", "٣", "1" * 30])
def test_what_is_no_timestamp_is_said(stamp: str) -> None:
    assert found(message(webhook_timestamp=stamp)).finding.startswith("Wrong timestamp")


def test_headers_are_read_as_they_are_pasted() -> None:
    text = "POST / HTTP/1.1\n> Webhook-Id:  evt_1 \nwebhook-timestamp: 17\n* webhook-signature: 'v1,a b'\nnonsense\n"
    assert read_headers(text) == {"webhook-id": "evt_1", "webhook-timestamp": "17", "webhook-signature": "v1,a b"}


@pytest.mark.parametrize("body", [b"[" * 100_000, b'"\\ud800"', b"\xff" * 10, b"", b'{"a":' * 5000])
def test_no_body_breaks_the_verifier(body: bytes) -> None:
    assert not found(message(), body).valid
