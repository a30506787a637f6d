"""What each failure means for the delivery and for the endpoint's health (design.md §6)."""

import pytest

from hookpost.model import ErrorCode
from hookpost.policy.classify import FAILURES, FailureClass, classify, http_error_code

EXPECTED = {
    #                         retried charged
    "dns_failure": (True, True),
    "connect_refused": (True, True),
    "connect_timeout": (True, True),
    "network_unreachable": (True, True),
    "first_byte_timeout": (True, True),
    "total_timeout": (True, True),
    "tls_failure": (True, True),
    "tls_untrusted": (True, True),
    "connection_reset": (True, True),
    "address_forbidden": (True, False),
    "invalid_url": (True, False),
    "protocol_error": (True, True),
    "egress_proxy_error": (True, False),
    "http_3xx": (True, False),
    "http_4xx": (False, False),
    "http_410": (False, False),
    "http_429": (True, True),
    "http_5xx": (True, True),
    "bad_ack": (True, False),
    "internal_error": (True, False),
}


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_error_code_says_whether_it_is_retried_and_charged(code: ErrorCode) -> None:
    retried, charged = EXPECTED[code.value]
    assert classify(code, None) == FAILURES[code] == FailureClass(retried=retried, charged=charged)


@pytest.mark.parametrize(("status", "retried"), [(408, True), (425, True), (400, False), (404, False), (422, False)])
def test_408_and_425_are_retried_uncharged_unlike_other_4xx(status: int, retried: bool) -> None:
    assert classify(ErrorCode.HTTP_4XX, status) == FailureClass(retried=retried, charged=False)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (200, None),
        (204, None),
        (299, None),
        (300, ErrorCode.HTTP_3XX),
        (399, ErrorCode.HTTP_3XX),
        (400, ErrorCode.HTTP_4XX),
        (408, ErrorCode.HTTP_4XX),
        (410, ErrorCode.HTTP_410),
        (425, ErrorCode.HTTP_4XX),
        (429, ErrorCode.HTTP_429),
        (499, ErrorCode.HTTP_4XX),
        (500, ErrorCode.HTTP_5XX),
        (599, ErrorCode.HTTP_5XX),
        (600, ErrorCode.HTTP_5XX),
        (999, ErrorCode.HTTP_5XX),
        (101, ErrorCode.PROTOCOL_ERROR),
    ],
)
def test_a_status_has_one_error_code(status: int, code: ErrorCode | None) -> None:
    assert http_error_code(status) is code
