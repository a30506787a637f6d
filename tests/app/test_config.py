"""Settings: what is refused and how it is said, what is shown, and that nothing secret is."""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path

import pytest
from pydantic import ValidationError

from hookpost.app.config import ConfigError, Settings, describe, load, unknown_variables
from hookpost.model import RetryPolicy, Timeouts


@pytest.fixture(autouse=True)
def _no_settings_of_this_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("HOOKPOST_"):
            monkeypatch.delenv(name)


def test_the_defaults_are_those_of_the_model() -> None:
    settings = load()
    assert settings.shards == 8
    assert settings.port == 8080
    assert settings.data_dir == Path.cwd() / "hookpost-data"
    assert settings.database_url is None
    retry = RetryPolicy(
        settings.retry_base_s, settings.retry_cap_s, settings.retry_max_attempts, settings.retry_deadline_s
    )
    assert retry == RetryPolicy()
    timeouts = Timeouts(settings.connect_timeout_s, settings.first_byte_timeout_s, settings.total_timeout_s)
    assert timeouts == Timeouts()


def test_an_option_beats_the_environment_which_beats_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOKPOST_PORT", "9000")
    assert load().port == 9000
    assert load(port=9001).port == 9001
    assert load(port=None).port == 9000


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PORT", "DATABASE_URL", "ADMIN_KEY", "CA_FILE", "ALLOW_NETWORKS", "DENY_PORTS"):
        monkeypatch.setenv(f"HOOKPOST_{name}", "")
    assert load() == Settings()


def test_no_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("HOOKPOST_PORT=9000\n")
    monkeypatch.chdir(tmp_path)
    assert load().port == 8080


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load().port = 1  # type: ignore[misc]


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOKPOST_ALLOW_NETWORKS", "127.0.0.0/8, fd00::/8")
    monkeypatch.setenv("HOOKPOST_DENY_PORTS", "9200, 25,9200")
    settings = load()
    assert settings.allow_networks == (ip_network("127.0.0.0/8"), ip_network("fd00::/8"))
    assert settings.deny_ports == (25, 9200)


def test_a_list_with_a_default_can_be_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOKPOST_DENY_PORTS", "none")
    assert load().deny_ports == ()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "PORT",
            "99999",
            "HOOKPOST_PORT=99999: must be a whole number, 0 to 65535 (port to listen on; 0 takes a free one)",
        ),
        ("PORT", "http", "HOOKPOST_PORT=http: must be a whole number, 0 to 65535"),
        ("RENEW_S", "nan", "HOOKPOST_RENEW_S=nan: must be a number, 0.5 to 100"),
        ("IDEMPOTENCY_HOURS", "0", "must be a number, above 0 to 720"),
        ("TOTAL_TIMEOUT_S", "31", "HOOKPOST_TOTAL_TIMEOUT_S=31: must be a number, 0.1 to 30"),
        ("HTTPS_ONLY", "perhaps", "must be true or false"),
        ("LOG_LEVEL", "loud", "must be one of debug, info, warning, error"),
        ("DATABASE_URL", "mysql://u:hunter2@h/d", "an address such as postgresql://user:password@host:5432/hookpost"),
        ("ADMIN_KEY", "hunter2", "`openssl rand -base64 32` makes a good one"),
        ("ALLOW_NETWORKS", "10.0.0.1/8", "10.0.0.1/8 is not a network"),
        ("ALLOW_NETWORKS", "here", "write CIDRs such as 10.0.0.0/8,fd00::/8"),
        ("DENY_PORTS", "80,http", "http is not a port"),
        ("DENY_PORTS", "70000", "70000 is not a port"),
        ("POOL", "Big Pool", "a name of at most 63 letters"),
        ("CA_FILE", "/nowhere/ca.pem", "this file does not exist"),
    ],
)
def test_a_wrong_value_is_refused_and_what_is_allowed_is_said(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(f"HOOKPOST_{name}", value)
    with pytest.raises(ConfigError) as refused:
        load()
    assert said in str(refused.value)
    assert f"HOOKPOST_{name}" in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"connect_timeout_s": 10}, "HOOKPOST_CONNECT_TIMEOUT_S (10) < HOOKPOST_FIRST_BYTE_TIMEOUT_S (10)"),
        ({"first_byte_timeout_s": 16}, "<= HOOKPOST_TOTAL_TIMEOUT_S (15) must hold"),
        ({"renew_s": 5}, "HOOKPOST_RENEW_S (5) must be below a third of HOOKPOST_LEASE_S (15)"),
        ({"retry_cap_s": 3}, "HOOKPOST_RETRY_BASE_S (5) <= HOOKPOST_RETRY_CAP_S (3)"),
        ({"retry_deadline_s": 3600}, "<= HOOKPOST_RETRY_DEADLINE_S (3600) must hold"),
        ({"database_pool_min": 9}, "must not exceed HOOKPOST_DATABASE_POOL_MAX (8)"),
        ({"ingest_queue_events": 10}, "must hold at least one batch"),
        (
            {"buffer_bytes": 1 << 20, "body_max_bytes": 2 << 20},
            "HOOKPOST_BUFFER_BYTES (1048576) must hold",
        ),
        ({"rollup_minutes_days": 3, "rollup_hours_days": 2}, "must not exceed HOOKPOST_ROLLUP_HOURS_DAYS (2)"),
        ({"workers": 9}, "HOOKPOST_WORKERS (9) must not exceed HOOKPOST_SHARDS (8)"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(**settings)
    assert said in str(refused.value)


def test_what_hangs_on_a_setting_that_is_wrong_is_no_fault_of_its_own() -> None:
    with pytest.raises(ConfigError) as refused:
        load(shards=0)
    assert str(refused.value).count("HOOKPOST_") == 1


def test_all_faults_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOKPOST_PORT", "70000")
    monkeypatch.setenv("HOOKPOST_SHARDS", "0")
    with pytest.raises(ConfigError) as refused:
        load()
    lines = str(refused.value).splitlines()
    assert lines[0] == "2 settings cannot be used:"
    assert lines[-1] == "`hookpost config` shows all settings and their meaning."
    assert len(lines) == 4


def test_every_setting_is_described() -> None:
    described = describe(load())
    assert [line.variable for line in described] == [f"HOOKPOST_{name.upper()}" for name in Settings.model_fields]
    assert all(line.meaning for line in described)
    assert next(line for line in described if line.variable == "HOOKPOST_RETRY_DEADLINE_S").default == "259200"


def test_no_secret_is_shown() -> None:
    key = "an-admin-key-of-good-length"
    url = "postgresql://joe:hunter2@db:5432/hookpost?password=hunter2&sslmode=require"
    settings = load(admin_key=key, database_url=url)
    shown = {line.variable: line.shown for line in describe(settings)}
    assert shown["HOOKPOST_ADMIN_KEY"] == "********"
    masked = "postgresql://joe:********@db:5432/hookpost?password=********&sslmode=require"
    assert shown["HOOKPOST_DATABASE_URL"] == masked
    for text in (repr(settings), str(settings), repr(describe(settings))):
        assert "hunter2" not in text
        assert key not in text


def test_a_mistyped_variable_is_found_with_the_nearest_setting() -> None:
    environ = {
        "HOOKPOST_PROT": "1",
        "HOOKPOST_ADMINKEY": "1",
        "HOOKPOST_XYZZY": "1",
        "HOOKPOST_PORT": "1",
        "HOOKPOST_URL": "for the client commands",
        "PATH": "/bin",
    }
    assert unknown_variables(environ) == [
        ("HOOKPOST_ADMINKEY", "HOOKPOST_ADMIN_KEY"),
        ("HOOKPOST_PROT", "HOOKPOST_PORT"),
        ("HOOKPOST_XYZZY", None),
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"smtp_host": "mail.example.com"}, "HOOKPOST_SMTP_FROM must be set"),
        ({"smtp_from": "nobody"}, "HOOKPOST_SMTP_FROM"),
        ({"smtp_user": "joe", "smtp_password": "hunter2", "smtp_tls": "none"}, "not sent in the clear"),
        ({"smtp_user": "joe"}, "must be set together"),
        ({"alert_secret": "whsec_" + "a" * 32}, "HOOKPOST_ALERT_URL, which is not set"),
        ({"alert_url": "https://joe:hunter2@example.com/"}, "HOOKPOST_ALERT_URL"),
        ({"alert_url": "https://example.com/", "alert_secret": "hunter2"}, "HOOKPOST_ALERT_SECRET"),
        ({"alert_after_failures": 0}, "HOOKPOST_ALERT_AFTER_FAILURES"),
        ({"disable_after_days": 0}, "HOOKPOST_DISABLE_AFTER_DAYS"),
    ],
)
def test_alerting_that_cannot_work_stops_the_start_and_tells_no_secret(given: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(**given)
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_how_alerts_go_out_is_shown_without_its_secrets() -> None:
    settings = load(
        alert_url="https://example.com/services/T0KEN", alert_secret="whsec_" + "a" * 32, smtp_host="mail.example.com",
        smtp_from="hookpost@example.com", smtp_user="joe", smtp_password="hunter2",
    )  # fmt: skip
    text = repr(describe(settings)) + repr(settings)
    assert not any(secret in text for secret in ("T0KEN", "aaaa", "hunter2"))
    assert "mail.example.com" in text


@pytest.mark.parametrize(
    "url", ["s3://bucket/prefix", "gs://bucket", "az://container/prefix", "file:///var/lib/payloads"]
)
def test_a_payload_store_has_an_address_of_a_kind_we_know(url: str) -> None:
    assert load(payload_store_url=url).payload_store_url == url


@pytest.mark.parametrize(
    "url",
    [
        "bucket",
        "https://bucket.example/",
        "memory:///",
        "s3://",
        "gs://",
        "az://",
        "gs:///folder",
        "file://",
        "file://folder",
        "s3://key:secret@bucket/x",
    ],
)
def test_any_other_address_of_a_payload_store_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="HOOKPOST_PAYLOAD_STORE_URL"):
        load(payload_store_url=url)


def test_payloads_leave_the_database_where_a_store_was_chosen_for_them() -> None:
    assert load().cold_after_s == 0, "a folder on the same disk is no cheaper"
    store = {"payload_store_url": "s3://acme/hookpost"}
    assert load(**store).cold_after_s == 96 * 3600 > load().retry_deadline_s
    assert load(cold_after_hours=0, **store).cold_after_s == 0
    assert load(cold_after_hours=24).cold_after_s == 24 * 3600
    with pytest.raises(ConfigError, match="HOOKPOST_COLD_AFTER_HOURS"):
        load(cold_after_hours=-1)


def test_no_deadline_is_later_than_its_event() -> None:
    with pytest.raises(ConfigError, match="HOOKPOST_RETENTION_DAYS") as refused:
        load(retention_days=4)
    assert "allows 172800" in str(refused.value)
    assert load(retention_days=5).deadline_s_max == 3 * 86_400
