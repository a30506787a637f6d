"""The header policy: what reference B5 lists, and the attacks H1 to H9."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookpost.policy.headers import HeaderRefused, check_header, check_headers, holds_a_secret, parse_patterns

GOOD = {
    "x-team": "payments", "Authorization": "Bearer abc.def", "cookie": "a=b; c=d", "content-type": "application/json",
    "user-agent": "acme/1", "accept": "*/*", "x-a": "a\tb", "api-key": "k", "ocp-apim-subscription-key": "k",
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), GOOD.items())
def test_what_receivers_ask_for_is_let_through(name: str, value: str) -> None:
    check_header(name, value)


REFUSED_VALUES = [
    "a\r\nX-Evil: 1",
    "a\nb",
    "a\rb",
    "a\0b",
    "a\x7fb",
    "caf\u00e9 \U0001f600",
    "",
    " a",
    "a ",
    "\ta",
    "x" * 4097,
]


@pytest.mark.parametrize("value", REFUSED_VALUES, ids=range(len(REFUSED_VALUES)))
def test_h1_h9_a_value_that_would_end_its_line_or_is_not_ascii_is_refused(value: str) -> None:
    with pytest.raises(HeaderRefused, match="visible ASCII"):
        check_header("x-a", value)


@pytest.mark.parametrize("name", ["X A", "", "X:", "\u00c4", "x" * 65, "x" * 10_240, "a\r\nb", "a\0", "(x)", "x\n"])
def test_h2_a_name_that_is_no_token_is_refused(name: str) -> None:
    with pytest.raises(HeaderRefused, match="a name has"):
        check_header(name, "v")


RESERVED = {
    "H3": "content-length transfer-encoding connection host keep-alive content-encoding date",
    "H4": "webhook-signature Webhook-ID webhook-timestamp webhook-ack svix-id x-webhook-event-id x-webhook-attempt "
    "ce-id ce-source signature signature-input content-digest",
    "H5": "Metadata-Flavor X-aws-ec2-metadata-token X-Aws-Ec2-Metadata-Token-Ttl-Seconds Metadata "
    "X-Google-Metadata-Request",
    "H6": "expect upgrade te trailer http2-settings",
    "B5": "proxy-authorization proxy-connection sec-fetch-site x-forwarded-for X-Forwarded-Host forwarded via "
    "traceparent tracestate baggage",
    "semantics": "range if-match origin max-forwards x-http-method-override x-real-ip access-control-request-method",
}


@pytest.mark.parametrize(("attack", "name"), [(key, name) for key, names in RESERVED.items() for name in names.split()])
def test_h3_to_h6_what_frames_routes_or_signs_a_request_cannot_be_set_and_says_why(attack: str, name: str) -> None:
    with pytest.raises(HeaderRefused, match=r"cannot be set: it|cannot be set: the trace"):
        check_header(name, "v", ("*", name.lower()))


def test_h8_headers_are_limited_in_number_and_size() -> None:
    check_headers({f"x-{n}": "v" for n in range(32)})
    with pytest.raises(HeaderRefused, match="at most 32 headers, these are 33"):
        check_headers({f"x-{n}": "v" for n in range(33)})
    with pytest.raises(HeaderRefused, match="at most 8192 bytes"):
        check_headers({f"x-{n}": "v" * 4000 for n in range(3)})


def test_an_operator_may_let_fewer_through() -> None:
    allowed = parse_patterns(["X-Acme-*", "authorization"])
    check_header("x-acme-team", "v", allowed)
    check_header("Authorization", "v", allowed)
    with pytest.raises(HeaderRefused, match=r"not among the headers that this installation lets through: x-acme-\*"):
        check_header("cookie", "v", allowed)
    with pytest.raises(ValueError, match="no name of a header"):
        parse_patterns(["x y"])


@pytest.mark.parametrize(
    "name", ["authorization", "Cookie", "x-api-key", "X-Auth-Token", "dd-api-key", "x_secret", "x-apikey", "x-password"]
)
def test_a_name_that_tells_of_a_secret_makes_it_one(name: str) -> None:
    assert holds_a_secret(name)


@pytest.mark.parametrize("name", ["x-team", "content-type", "x-monkey", "x-author", "user-agent", "x-tokens-used-ok"])
def test_other_names_do_not(name: str) -> None:
    assert not holds_a_secret(name)


@given(name=st.text(max_size=80), value=st.text(max_size=100))
def test_whatever_is_let_through_is_one_line_of_ascii(name: str, value: str) -> None:
    try:
        check_header(name, value)
    except HeaderRefused:
        return
    line = f"{name}: {value}"
    assert line.isascii() and line.replace("\t", " ").isprintable() and line == line.strip()
