"""Secrets on a real server: sent where they belong, written nowhere else; and what becomes of keys that are lost."""

from __future__ import annotations

import asyncio
import stat
import subprocess
from base64 import b64encode
from pathlib import Path

import pytest

from hookpost.storage.postgres.embedded import bin_dir, find_running
from tests.e2e.harness import ADMIN_KEY, Arrival, Hookpost, Receiver, answer, command, fresh_folder, receiver, running

pytestmark = pytest.mark.process

SIGNING_KEY = b"canary-of-a-signing-key!"
ROTATED_KEY = b"canary-of-a-rotated-key!"
BEARER = "canary-of-a-bearer-token"
PIN = "canary-of-a-flagged-header"
PAYLOAD = "canary-of-a-payload"
ANSWER = "canary-of-an-answer"


def whsec(key: bytes) -> str:
    return "whsec_" + b64encode(key).decode()


def forms(*secrets: bytes | str) -> dict[str, bytes]:
    """Every form in which a secret might lie somewhere: as it is, in base64, in hex as a dump writes bytes."""
    found = {}
    for secret in secrets:
        raw = secret if isinstance(secret, bytes) else secret.encode()
        found |= {
            f"{raw!r}": raw,
            f"base64 of {raw!r}": b64encode(raw).rstrip(b"="),
            f"hex of {raw!r}": raw.hex().encode(),
        }
    return found


def assert_nowhere(what: str, text: bytes, secrets: dict[str, bytes]) -> None:
    assert [name for name, form in secrets.items() if form in text] == [], f"in {what}"


async def test_s9_i22_no_secret_is_written_but_sealed_and_f34_a_lost_key_stops_the_start_and_loses_nothing() -> None:
    """One server for all of it: starts are what costs."""
    place = fresh_folder()
    async with receiver() as ledger:
        ledger.handlers["/broken"] = _refuse
        async with running(folder=place, log_level="debug", retry_base_s="0.2") as server:
            tenant_key = await _drive(server, ledger)
            written = "\n".join([*server.lines, *server.output]).encode()
            dumped = await _dump(server)
            shown = await _shown(server)
            await _pause_and_post(server)
        sealed = forms(SIGNING_KEY, ROTATED_KEY, BEARER, PIN)
        hashed = forms(tenant_key, tenant_key.rpartition("_")[2][:64], ADMIN_KEY)
        assert_nowhere("the log", written, sealed | hashed | forms(PAYLOAD, ANSWER))
        assert_nowhere("the database", dumped, sealed | hashed)
        assert_nowhere("answers of the API", shown, forms(BEARER, PIN, ROTATED_KEY) | hashed)
        for path in place.rglob("*"):
            if path.is_file() and not path.is_symlink():
                assert_nowhere(str(path), path.read_bytes(), sealed | hashed)
        await _lose_and_rotate_keys(place / "data", ledger)


async def _refuse(arrival: Arrival, writer: asyncio.StreamWriter) -> None:
    writer.write(answer(500, ANSWER.encode()))


async def _drive(server: Hookpost, ledger: Receiver) -> str:
    """Use everything that takes a secret, well and badly; returns the API key of a tenant."""
    tenant = await server.call("POST", "/v1/tenants", {"name": "acme"}, key=ADMIN_KEY, expect=201)
    path = f"/v1/tenants/{tenant['tenant_id']}/api_keys"
    key = str((await server.call("POST", path, {"name": "k"}, key=ADMIN_KEY, expect=201))["key"])
    headers = {"authorization": f"Bearer {BEARER}", "x-pin": {"value": PIN, "secret": True}, "x-team": "payments"}
    good = await server.endpoint(ledger.url(), secret=whsec(SIGNING_KEY), headers=headers, key=key)
    bad = await server.endpoint(ledger.url("/broken"), secret=whsec(SIGNING_KEY), headers=headers, key=key)
    posted = await server.post(payload={"note": PAYLOAD}, key=key)
    await server.settled(posted, "waiting", key=key)
    await server.polled(f"/v1/attempts?endpoint_id={good['endpoint_id']}", lambda found: bool(found["data"]), key=key)
    [arrival] = [each for each in ledger.arrivals if each.path == "/hook"]
    assert arrival.headers["authorization"] == f"Bearer {BEARER}"
    assert (arrival.headers["x-pin"], arrival.headers["x-team"]) == (PIN, "payments")
    assert "," not in arrival.headers["webhook-signature"].removeprefix("v1,"), "one signature, and it is ours"
    for endpoint in (good, bad):
        path = f"/v1/webhook_endpoints/{endpoint['endpoint_id']}"
        await server.call("POST", f"{path}/secret/rotate", {"secret": whsec(ROTATED_KEY)}, key=key, expect=200)
    # What is refused must not be repeated by whoever refuses it.
    await server.call("PATCH", path, {"headers": {"host": BEARER}}, key=key, expect=422)
    await server.call("PATCH", path, {"headers": {"x-a": f"{BEARER}\r\n"}}, key=key, expect=422)
    await server.call("PATCH", path, {"secret": whsec(SIGNING_KEY)}, key=key, expect=422)
    await server.call("POST", f"{path}/secret/rotate", {"secret": f"{BEARER}"}, key=key, expect=422)
    await server.call("GET", path, key=key[:-1] + ("0" if key[-1] != "0" else "1"), expect=401)
    await server.call("POST", "/v1/events", {"type": PAYLOAD * 9, "payload": PAYLOAD}, key=key, expect=422)
    # A worker that is killed in the middle of it says no more than one that ends.
    await server.replace_child("worker-1")
    await server.until_line("shards_acquired", count=2)
    return key


async def _dump(server: Hookpost) -> bytes:
    dsn = find_running(server.folder)
    assert dsn is not None
    process = await asyncio.create_subprocess_exec(
        bin_dir() / "pg_dump", "--dbname", dsn, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    out, _ = await process.communicate()
    assert process.returncode == 0 and b"endpoint_secrets" in out
    return out


async def _shown(server: Hookpost) -> bytes:
    """What the API says to its admin, but for the routes that are there to show a secret."""
    paths = ("/openapi.json", "/readyz", "/metrics", "/v1/webhook_endpoints", "/v1/tenants", "/v1/attempts",
             "/v1/dead_letters", "/v1/audit_log", "/v1/audit_log?format=ndjson", "/v1/events")  # fmt: skip
    return b"\n".join([await server.bytes_of("GET", path, None, expect=200, key=ADMIN_KEY) for path in paths])


async def _pause_and_post(server: Hookpost) -> None:
    """Something that is owed while the keys are gone."""
    listed = await server.call("GET", "/v1/webhook_endpoints", key=ADMIN_KEY, expect=200)
    tenant_id = listed["data"][0]["tenant_id"]
    for endpoint in listed["data"]:
        path = f"/v1/webhook_endpoints/{endpoint['endpoint_id']}/pause"
        await server.call("POST", path, {}, key=ADMIN_KEY, expect=200, **{"X-Tenant-Id": tenant_id})
    event = {"type": "late.one", "payload": 1}
    await server.call("POST", "/v1/events", event, key=ADMIN_KEY, expect=202, **{"X-Tenant-Id": tenant_id})


async def _lose_and_rotate_keys(data: Path, ledger: Receiver) -> None:
    keys = data / "encryption.keys"
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    kept = keys.read_text()
    key_id, _, material = kept.strip().partition(":")
    keys.unlink()
    for other in ({}, {"encryption_keys": "k9:" + b64encode(b"9" * 32).decode()}):
        ended = await command("serve", data_dir=str(data), port="0", admin_key=ADMIN_KEY, **other)
        assert ended.code == 1 and f"encryption key {key_id}" in ended.said, ended
        assert material[:8] not in ended.err
    assert not keys.exists(), "a key that nothing can be opened with helps nobody"
    keys.write_text(kept)
    ended = await command("serve", data_dir=str(data), port="0", admin_key=ADMIN_KEY)
    assert ended.code == 1 and "chmod 600" in ended.said, "written with the usual mask, it can be read by everybody"
    keys.chmod(0o600)
    added = await command("keys", "add-encryption-key", data_dir=str(data))
    assert added.code == 0 and stat.S_IMODE(keys.stat().st_mode) == 0o600, added
    async with running(folder=data.parent) as server:
        before = len(ledger.arrivals)
        for endpoint in (await server.call("GET", "/v1/webhook_endpoints", key=ADMIN_KEY, expect=200))["data"]:
            path = f"/v1/webhook_endpoints/{endpoint['endpoint_id']}/resume"
            await server.call("POST", path, {}, key=ADMIN_KEY, expect=200, **{"X-Tenant-Id": endpoint["tenant_id"]})
        await ledger.until(
            lambda: any(each.path == "/hook" for each in ledger.arrivals[before:]),
            what="what was owed meanwhile",
        )
        arrival = next(each for each in ledger.arrivals[before:] if each.path == "/hook")
        assert arrival.headers["authorization"] == f"Bearer {BEARER}"
        rotated = await command("keys", "rotate-encryption", data_dir=str(data))
        assert rotated.code == 0, rotated
        keys.write_text(keys.read_text().partition("\n")[0] + "\n")
        noted = data / "heads.json"
        verified = await command("audit", "verify", "--save", str(noted), data_dir=str(data))
        assert verified.code == 0 and "all are in order" in verified.out, verified
        assert (await command("audit", "verify", "--against", str(noted), data_dir=str(data))).code == 0
        exported = await command("audit", "export", url=server.url, api_key=ADMIN_KEY)
        assert exported.code == 0 and '"action":"encryption.rotate"' in exported.out, exported
