"""From what a request says of an endpoint to the columns that are written; nothing here asks the store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hookpost.policy.egress import UrlError, check_url, origin_of, split_url
from hookpost.policy.headers import MASK, HeaderRefused, check_header, holds_a_secret
from hookpost.policy.signing import GENERATED_BYTES, SecretError, parse_secret
from hookpost.policy.tls import TlsError, check_authorities, check_identity
from hookpost.storage.contract import HeaderChange, HeaderValue, TlsChange
from hookpost.web import schemas, shown
from hookpost.web.api import WebSettings
from hookpost.web.problems import invalid, invalid_fields

# Written as they are given, null for the default.
_PLAIN_COLUMNS = ("description", "uid", "max_in_flight", "rate_limit", "on_dead", "spread")
_RETRY_COLUMNS = ("base_s", "cap_s", "max_attempts", "deadline_s")
_TIMEOUT_COLUMNS = ("connect_s", "first_byte_s", "total_s")


def secret_key(settings: WebSettings, text: str | None) -> bytes:
    """The key of a secret that the tenant brought, or a generated one."""
    if text is None:
        return settings.random_bytes(GENERATED_BYTES)
    try:
        return parse_secret(text)
    except SecretError as error:
        raise invalid("secret", str(error)) from error


def endpoint_changes(
    settings: WebSettings, form: schemas.EndpointCreate | schemas.EndpointPatch, current: Mapping[str, Any]
) -> dict[str, Any]:
    """The columns that a request writes; ``current`` is the stored endpoint, empty for a new one.

    The columns of ``retry`` and of ``timeouts`` are written together, so that two requests at the same moment cannot
    leave a combination that neither has asked for.
    """
    given = form.given()
    changes: dict[str, Any] = {name: given[name] for name in _PLAIN_COLUMNS if name in given}
    if "url" in given:
        changes["url"] = _checked_url(settings, form.url)
    if "events" in given:
        changes["events"] = list(dict.fromkeys(form.events or ["*"]))
        if len(changes["events"]) > settings.filters_max:
            raise invalid(
                "events", f"an endpoint may have {settings.filters_max} filters: use prefixes such as invoice.*"
            )
    if "ordered" in given:
        changes["ordered"] = bool(form.ordered)
    if "forward_trace" in given:
        changes["forward_trace"] = bool(form.forward_trace)
    if "ack" in given:
        changes["ack"] = form.ack or None
    if "metadata" in given:
        changes["metadata"] = form.metadata or {}
    if "headers" in given:
        changes["headers"] = _header_change(settings, form.headers)
    if "tls" in given:
        changes["tls"] = _tls_change(settings, form.tls)
    if "tls" in given or "url" in given:
        _check_tls_url(dict(current) | changes)
    if "enabled" in given:
        changes |= _status_change(form.enabled is not False, current)
    if "retry" in given:
        changes |= _group(_RETRY_COLUMNS, form.retry, current)
    if "timeouts" in given:
        changes |= _group(_TIMEOUT_COLUMNS, form.timeouts, current)
    _check_policy(settings, dict.fromkeys((*_RETRY_COLUMNS, *_TIMEOUT_COLUMNS)) | dict(current) | changes)
    return changes


def _header_change(settings: WebSettings, given: HeaderChange) -> HeaderChange:
    """What a request changes of the endpoint's own headers; each that is refused is named with the reason."""
    if given is None:
        return None
    change: dict[str, HeaderValue | None] = {}
    errors = []
    for name, wanted in given.items():
        try:
            if name.lower() in change:
                raise HeaderRefused("is given twice: names are the same in upper and lower case")
            change[name.lower()] = None
            if wanted is None:
                continue
            if wanted.value == MASK:
                raise HeaderRefused("is the mask of a secret: leave the header out to keep it as it is")
            check_header(name, wanted.value, settings.headers_allow)
        except HeaderRefused as error:
            errors.append({"field": f"headers.{name}", "message": str(error)})
            continue
        change[name.lower()] = HeaderValue(wanted.value, wanted.secret or holds_a_secret(name))
    if errors:
        raise invalid_fields(errors)
    return change


def _tls_change(settings: WebSettings, form: schemas.TlsForm | None) -> TlsChange:
    """What a request changes of the endpoint's TLS."""
    if form is None:
        return None
    given = form.given()
    pair = [name for name in ("client_cert_pem", "client_key_pem") if name in given]
    if len(pair) == 1 or (form.client_cert_pem is None) is not (form.client_key_pem is None):
        raise invalid("tls", "client_cert_pem and client_key_pem come together, or both are null")
    change: dict[str, str | None] = {}
    field = "tls.ca_pem"
    try:
        if "ca_pem" in given:
            change["ca"] = None if form.ca_pem is None else check_authorities(form.ca_pem, now=settings.now())
        field = "tls.client_cert_pem"
        if pair and form.client_cert_pem is not None and form.client_key_pem is not None:
            change["cert"], change["key"] = check_identity(
                form.client_cert_pem, form.client_key_pem, now=settings.now()
            )
        elif pair:
            change["cert"] = change["key"] = None
    except TlsError as error:
        raise invalid(field, str(error)) from error
    return change


def _check_tls_url(row: Mapping[str, Any]) -> None:
    """TLS of its own is of use to https:// alone; ``row``: the endpoint as it will be."""
    wanted = row.get("tls", {})
    stored = {} if wanted is None else {"ca": row.get("tls_ca"), "cert": row.get("tls_cert")} | dict(wanted)
    if row["url"].startswith("http://") and any(stored.values()):
        raise invalid("tls", "it needs a URL that begins with https://: change the URL, or set tls to null")


def _checked_url(settings: WebSettings, url: str) -> str:
    try:
        checked = check_url(url, settings.egress)
    except UrlError as error:
        raise invalid("url", str(error)) from error
    if settings.public_url is not None and origin_of(checked) == origin_of(split_url(settings.public_url).url):
        raise invalid("url", "this is Hookpost's own address: what it delivers would come back to it")
    return checked


def _status_change(enabled: bool, current: Mapping[str, Any]) -> dict[str, Any]:
    """``enabled`` switches between enabled and disabled; a paused endpoint that is not to be disabled stays paused."""
    if not enabled:
        return {"status": "disabled", "status_reason": "requested"} if not current else {"status": "disabled"}
    return {"status": "enabled"} if current.get("status") == "disabled" else {}


def _group(
    columns: tuple[str, ...], form: schemas.RetryForm | schemas.TimeoutsForm | None, current: Mapping[str, Any]
) -> dict[str, Any]:
    """All columns of a group after the request; null resets the whole group."""
    if form is None:
        return dict.fromkeys(columns)
    given = form.given()
    return {name: given[name] if name in given else current.get(name) for name in columns}


def _check_policy(settings: WebSettings, row: Mapping[str, Any]) -> None:
    """What single ranges cannot say, judged on the values in force."""
    retry = shown.effective_retry(row, settings.retry)
    timeouts = shown.effective_timeouts(row, settings.timeouts)
    if row.get("spread"):
        for name in ("ordered", "rate_limit"):
            if row.get(name):
                raise invalid(name, "needs one shard for the whole endpoint: set spread to null or false with it")
    if retry.cap_s < retry.base_s:
        raise invalid("retry.cap_s", f"must not be less than base_s ({retry.base_s:g})")
    if timeouts.connect_s >= timeouts.first_byte_s:
        raise invalid("timeouts.connect_s", f"must be less than first_byte_s ({timeouts.first_byte_s:g})")
    if timeouts.total_s > settings.total_timeout_max_s:
        raise invalid("timeouts.total_s", f"must not be more than {settings.total_timeout_max_s:g} here")
    if timeouts.first_byte_s > timeouts.total_s:
        raise invalid("timeouts.first_byte_s", f"must not be more than total_s ({timeouts.total_s:g})")
    if retry.deadline_s > settings.deadline_s_max:
        raise invalid("retry.deadline_s", f"must not be more than {settings.deadline_s_max:g} here")
    if retry.deadline_s < timeouts.total_s:
        raise invalid("retry.deadline_s", f"must not be less than total_s ({timeouts.total_s:g})")
