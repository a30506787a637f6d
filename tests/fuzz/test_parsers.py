"""Every parser of what others send, on anything: it answers with a value or its own error, never with another one."""

from __future__ import annotations

import json
import math
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hookpost.app.config import ConfigError, Settings, load
from hookpost.model import IdError, parse_id
from hookpost.policy.alerts import check_mail_address
from hookpost.policy.egress import EgressPolicy, UrlError, check_url, parse_proxy, split_url, verdict
from hookpost.policy.headers import HeaderRefused, check_header
from hookpost.policy.keys import parse_key
from hookpost.policy.retry import parse_retry_after
from hookpost.policy.sealing import KeyringError, parse_keyring
from hookpost.policy.signing import SecretError, VerificationError, parse_secret, verify
from hookpost.web.cursors import Cursors
from hookpost.web.events import EventLimits, EventRoutes
from hookpost.web.problems import Problem

NOW = 1_800_000_000.0
TENANT, OTHER = UUID(int=1), UUID(int=2)
TEXT = st.text(st.characters(exclude_categories=()), max_size=80)  # lone surrogates and controls included
URLS = st.builds(
    "{}{}{}{}{}".format,
    st.sampled_from(["http://", "https://", "HTTP:", "//", "file://", ""]) | TEXT,
    st.sampled_from(["", "u:p@", "@", "[", "①", "xn--"]) | TEXT,
    st.sampled_from(["127.1", "0x7f.1", "2130706433", "[::ffff:a9fe:a9fe]", "example.com", "ⅼocalhost", "."]) | TEXT,
    st.sampled_from(["", ":0", ":8０", ":65536", ":443"]) | TEXT,
    st.sampled_from(["/", "?", "#", "\\", "/%0d%0a", "/\r\n"]) | TEXT,
)


@given(URLS)
def test_a_url_is_refused_or_has_one_normal_form_that_libcurl_reads_the_same_way(text: str) -> None:
    try:
        target = split_url(text)
    except UrlError as error:
        assert str(error)
        return
    assert target.url.isascii() and target.url.isprintable() and " " not in target.url
    assert split_url(target.url) == target
    assert 1 <= target.port <= 65535
    try:
        assert check_url(text, EgressPolicy()) == target.url
    except UrlError:
        return
    assert not target.literal or verdict(target.host, ()) is None


@given(TEXT | URLS)
def test_a_proxy_is_refused_or_has_host_and_port(text: str) -> None:
    try:
        proxy = parse_proxy(text)
    except UrlError:
        return
    assert proxy.host.isascii() and 1 <= proxy.port <= 65535


@given(TEXT | st.ip_addresses().map(str), st.booleans())
def test_a_verdict_is_given_on_anything(text: str, zone: bool) -> None:
    assert verdict(text + "%eth0" * zone, ()) is None or verdict(text, ())


@given(st.binary(max_size=60) | TEXT.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_a_retry_after_is_a_time_that_can_be_waited_for(raw: bytes) -> None:
    seconds = parse_retry_after(raw, now=NOW)
    assert math.isfinite(seconds)
    assert seconds >= 0


CURSORS = Cursors(b"0123456789abcdef")


@given(TEXT)
def test_a_cursor_that_is_not_ours_is_a_400(text: str) -> None:
    with pytest.raises(Problem) as refused:
        CURSORS.read(text, TENANT, {})
    assert refused.value.status == 400


JSON = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20)


@given(st.lists(JSON, min_size=1, max_size=4), st.dictionaries(st.text(max_size=8), JSON, max_size=3), st.data())
def test_a_cursor_is_good_for_its_own_list_alone_and_unaltered(
    key: list[Any], filters: dict[str, Any], data: st.DataObject
) -> None:
    cursor = CURSORS.show(tuple(key), TENANT, filters)
    assert cursor is not None
    assert CURSORS.read(cursor, TENANT, filters) == tuple(key)
    at = data.draw(st.integers(0, len(cursor) - 2))  # the last character may have bits that mean nothing
    altered = cursor[:at] + ("A" if cursor[at] != "A" else "B") + cursor[at + 1 :]
    for other in [(altered, TENANT, filters), (cursor, OTHER, filters), (cursor, TENANT, {**filters, "more": 1})]:
        with pytest.raises(Problem):
            CURSORS.read(*other)


@given(TEXT)
def test_a_secret_and_a_key_are_read_or_refused(text: str) -> None:
    assert parse_key(text) is None
    try:
        assert 24 <= len(parse_secret("whsec_" + text)) <= 64
    except SecretError as error:
        assert text not in str(error) or len(text) < 4
    with pytest.raises(KeyringError):
        parse_keyring(text)


@given(st.dictionaries(st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature"]), TEXT), st.binary())
def test_s20_a_signature_that_is_not_ours_has_one_exception(headers: dict[str, str], body: bytes) -> None:
    with pytest.raises(VerificationError):
        verify(headers, body, [b"k" * 24], now=NOW)


@given(TEXT, TEXT)
def test_a_header_is_refused_or_one_line(name: str, value: str) -> None:
    try:
        check_header(name, value)
    except HeaderRefused:
        return
    assert f"{name}: {value}".isascii()
    assert not {"\r", "\n", "\0", ":"} & set(name)
    assert not {"\r", "\n", "\0"} & set(value)


@given(TEXT)
def test_an_id_and_a_mail_address_are_read_or_refused(text: str) -> None:
    with pytest.raises(IdError):
        parse_id("ep", text)
    try:
        check_mail_address(text)
    except ValueError as error:
        assert str(error)


BODY = st.binary(max_size=200) | st.recursive(
    JSON | st.floats(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner), max_leaves=9
).map(lambda value: json.dumps({"type": "a.b", "payload": value}).encode("utf-8", "surrogatepass"))  # fmt: skip
ROUTES = EventRoutes(None, None, limits=EventLimits())  # type: ignore[arg-type]  # what reads bodies uses neither


@given(BODY, st.binary(max_size=8), st.integers(0, 220))
def test_an_event_is_cut_out_as_it_was_posted_or_refused_with_a_4xx(body: bytes, noise: bytes, at: int) -> None:
    for text in (body, body[:at] + noise + body[at:]):
        for read in (ROUTES._read_single, ROUTES._read_batch):
            try:
                submissions, _ = read({}, text)
            except Problem as problem:
                assert 400 <= problem.status < 500
                assert problem.body()
            else:
                assert all(each.payload in text for each in submissions)


@given(st.sampled_from(sorted(Settings.model_fields)), TEXT.filter(lambda text: "\0" not in text))
def test_a_setting_is_taken_or_named_with_what_it_may_be(name: str, text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        try:
            patch.setenv(f"HOOKPOST_{name.upper()}", text)
        except UnicodeEncodeError:
            return
        try:
            load()
        except ConfigError as error:
            assert f"HOOKPOST_{name.upper()}" in str(error)
