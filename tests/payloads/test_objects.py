"""The payload store in a folder and in an S3 over HTTP: durable, exact, in time, and never taken for another one."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from obstore.store import AzureStore, GCSStore, S3Store
from uuid_utils.compat import uuid7

from hookpost.app.compose import make_payloads
from hookpost.app.config import ConfigError, load
from hookpost.model import REMOVED, PayloadRef
from hookpost.policy.objects import event_of, minted_hour, object_key, segment_key
from hookpost.storage import payloads as module
from hookpost.storage.contract import PayloadMissing, PayloadStoreForeign, StoreUnavailable
from hookpost.storage.payloads import MARKER, ObjectStore
from tests.payloads.conftest import S3

PAYLOAD = b'{"n": 1, "text": "\xc3\xa9"}' * 100


def test_a_place_is_read_back_as_it_was_written() -> None:
    ref = PayloadRef("events/1/02/abc", 7, 99, bytes(range(32)))
    assert PayloadRef.parse(str(ref)) == ref
    assert PayloadRef.parse(str(REMOVED)) is REMOVED
    assert str(REMOVED) == "removed 0 0 00"  # as the statements spell it out
    assert len(ref) == 99


def test_an_objects_name_tells_its_event_and_its_hour() -> None:
    event_id = uuid7()
    key = object_key(event_id)
    assert event_of(key) == event_id
    assert event_of(f"segments/{event_id.hex}") is None
    assert event_of(MARKER) is None
    assert key.split("/")[1:3] == [str(minted_hour(event_id) // 24), f"{minted_hour(event_id) % 24:02}"]


async def test_what_was_put_is_read_whole_and_in_parts(objects: ObjectStore) -> None:
    ref = await objects.put("a/b", PAYLOAD)
    assert await objects.get(ref) == PAYLOAD
    part = replace(ref, offset=10, length=20, digest=sha256(PAYLOAD[10:30]).digest())
    assert await objects.get(part) == PAYLOAD[10:30]


async def test_a_part_is_asked_for_by_its_range(s3: S3, bucket: str) -> None:
    objects = ObjectStore(bucket)
    ref = await objects.put("a/b", PAYLOAD)
    s3.requests.clear()
    await objects.get(replace(ref, offset=5, length=3, digest=sha256(PAYLOAD[5:8]).digest()))
    assert [(method, wanted) for method, _, wanted in s3.requests] == [("GET", "bytes=5-7")]


async def test_a_vanished_object_is_missing(objects: ObjectStore) -> None:
    await objects.put(MARKER, b"x")
    ref = await objects.put("a/b", PAYLOAD)
    await objects.delete(["a/b", "a/never-there"])
    with pytest.raises(PayloadMissing, match="a/b"):
        await objects.get(ref)


@pytest.mark.parametrize("altered", [PAYLOAD[:-1] + b"?", PAYLOAD[:-1], b"", PAYLOAD + b"?"])
async def test_altered_bytes_are_never_handed_out(objects: ObjectStore, altered: bytes) -> None:
    await objects.put(MARKER, b"x")
    ref = await objects.put("a/b", PAYLOAD)
    await objects.put("a/b", altered)
    if altered.startswith(PAYLOAD):
        assert await objects.get(ref) == PAYLOAD
        return
    with pytest.raises(PayloadMissing, match="a/b"):
        await objects.get(ref)


async def test_where_the_whole_store_is_gone_no_payload_counts_as_missing(tmp_path: Path) -> None:
    objects = ObjectStore((tmp_path / "mounted").as_uri())
    await objects.claim("us")
    ref = await objects.put("a/b", PAYLOAD)
    (tmp_path / "mounted").rename(tmp_path / "elsewhere")
    with pytest.raises(StoreUnavailable, match="not there at all"):
        await objects.get(ref)


async def test_one_read_serves_all_who_ask_at_the_same_time(s3: S3, bucket: str) -> None:
    objects = ObjectStore(bucket)
    ref = await objects.put("a/b", PAYLOAD)
    s3.requests.clear()
    assert await asyncio.gather(*(objects.get(ref) for _ in range(10))) == [PAYLOAD] * 10
    assert len(s3.requests) == 1


@pytest.mark.parametrize("method", ["PUT", "GET"])
async def test_a_store_that_answers_503_is_unavailable(s3: S3, bucket: str, method: str) -> None:
    objects = ObjectStore(bucket)
    ref = await objects.put("a/b", PAYLOAD)
    s3.failing.add(method)
    with pytest.raises(StoreUnavailable):
        await (objects.put("a/c", PAYLOAD) if method == "PUT" else objects.get(ref))


@pytest.mark.parametrize("method", ["PUT", "GET"])
async def test_a_store_that_dawdles_is_given_up_in_time(
    s3: S3, bucket: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = ObjectStore(bucket)
    ref = await objects.put("a/b", PAYLOAD)
    s3.slow.add(method)
    monkeypatch.setattr(module, "REQUEST_S", 0.2)
    with pytest.raises(StoreUnavailable, match="a/"):
        await (objects.put("a/c", PAYLOAD) if method == "PUT" else objects.get(ref))


async def test_erased_parts_are_zeros_and_all_others_as_they_were(objects: ObjectStore) -> None:
    await objects.put(MARKER, b"x")
    ref = await objects.put("cold/1/1", PAYLOAD)
    await objects.erase("cold/1/1", [(10, 5), (100, 20)])
    await objects.erase("cold/1/1", [(10, 5)])
    erased = PAYLOAD[:10] + bytes(5) + PAYLOAD[15:100] + bytes(20) + PAYLOAD[120:]
    assert await objects.get(replace(ref, digest=sha256(erased).digest())) == erased
    await objects.erase("cold/1/never-there", [(0, 1)])


async def test_half_a_hash_tells_altered_bytes_and_less_is_none(objects: ObjectStore) -> None:
    await objects.put(MARKER, b"x")
    ref = await objects.put("cold/1/1", PAYLOAD)
    assert await objects.get(replace(ref, digest=ref.digest[:16])) == PAYLOAD
    for digest in (bytes(16), ref.digest[:15], b""):
        with pytest.raises(PayloadMissing, match="other bytes"):
            await objects.get(replace(ref, digest=digest))


async def test_who_was_frozen_while_erasing_brings_nothing_back(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have read the segment; the later one would write back what the first one has erased."""
    objects = ObjectStore(bucket)
    ref = await objects.put("cold/1/1", PAYLOAD)
    frozen, woken = asyncio.Event(), asyncio.Event()
    put = module.obstore.put_async

    async def late(*arguments: Any, **options: Any) -> Any:
        frozen.set()
        await woken.wait()
        return await put(*arguments, **options)

    monkeypatch.setattr(module.obstore, "put_async", late)
    erasing = asyncio.create_task(objects.erase("cold/1/1", [(0, 5)]))
    await frozen.wait()
    monkeypatch.setattr(module.obstore, "put_async", put)
    await ObjectStore(bucket).erase("cold/1/1", [(10, 5)])
    woken.set()
    with pytest.raises(StoreUnavailable, match="PreconditionError"):
        await erasing
    erased = PAYLOAD[:10] + bytes(5) + PAYLOAD[15:]
    assert await objects.get(replace(ref, digest=sha256(erased).digest())) == erased


async def test_nothing_counts_as_erased_while_the_whole_store_is_away(s3: S3, bucket: str, tmp_path: Path) -> None:
    folder = ObjectStore((tmp_path / "mounted").as_uri())
    await folder.claim("us")
    (tmp_path / "mounted").rename(tmp_path / "elsewhere")
    s3.failing.add("GET")
    for objects in (folder, ObjectStore(bucket)):
        with pytest.raises(StoreUnavailable):
            await objects.erase("cold/1/1", [(0, 5)])


async def test_a_listing_of_an_hour_holds_all_of_its_objects_and_no_others(
    objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LISTED_AT_ONCE", 2)
    keys = [object_key(uuid7(nanoseconds=(3600 * 500_000 + n) * 10**9)) for n in range(5)]
    keys += [segment_key(500_000, number) for number in range(3)]
    others = [object_key(uuid7(nanoseconds=3600 * 500_001 * 10**9)), segment_key(500_001, 1), segment_key(50_000, 1)]
    for key in (*keys, *others):
        await objects.put(key, b"{}")
    assert sorted([key async for some in objects.list_hour(500_000) for key in some]) == sorted(keys)
    assert [some async for some in objects.list_hour(499_999)] == []


async def test_a_bucket_that_is_not_there_is_a_store_that_is_away(s3: S3) -> None:
    objects = ObjectStore("s3://no-such-bucket-of-ours/hookpost")
    with pytest.raises(StoreUnavailable):
        await objects.put("a/b", PAYLOAD)
    with pytest.raises(StoreUnavailable):
        await objects.get(PayloadRef("a/b", 0, 1, bytes(32)))
    with pytest.raises(StoreUnavailable):
        assert [some async for some in objects.list_hour(1)]


async def test_a_put_has_synced_the_file_and_every_folder_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noting(fd: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noting)
    root = tmp_path / "payloads"
    await ObjectStore(root.as_uri()).put("events/1/02/abc", PAYLOAD)
    assert synced == [
        str(root / part) if part else str(root) for part in ("events/1/02/abc", "events/1/02", "events/1", "events", "")
    ]


async def test_a_store_belongs_to_one_installation(objects: ObjectStore) -> None:
    with pytest.raises(PayloadStoreForeign, match="empty"):
        await objects.check("us")
    await objects.claim("us")
    await objects.claim("us")
    await objects.check("us")
    for ask in (objects.claim, objects.check):
        with pytest.raises(PayloadStoreForeign, match="another installation"):
            await ask("them")


AZURE = {"AZURE_STORAGE_ACCOUNT_NAME": "acme", "AZURE_STORAGE_ACCOUNT_KEY": "a2V5"}


@pytest.mark.parametrize(
    ("url", "kind", "bucket", "prefix"),
    [
        ("gs://acme-payloads/hook/post", GCSStore, "acme-payloads", "hook/post"),
        ("az://acme-payloads/hookpost", AzureStore, "acme-payloads", "hookpost"),
        ("s3://acme-payloads/hookpost", S3Store, "acme-payloads", "hookpost"),
    ],
)
def test_an_address_leads_to_the_store_of_its_kind(
    url: str, kind: type[Any], bucket: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of Google's and Azure's that is all that is tested: nothing is sent to them."""
    for name, value in AZURE.items():
        monkeypatch.setenv(name, value)
    opened = ObjectStore(url)._store
    assert isinstance(opened, kind)
    assert bucket in (opened.config.get("bucket"), opened.config.get("container_name"))
    assert str(opened.prefix) == prefix


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"GOOGLE_SERVICE_ACCOUNT": "/nowhere/key.json"}, "/nowhere/key.json"),
        ({"GOOGLE_SERVICE_ACCOUNT_KEY": "{}"}, "private_key"),
    ],
)
def test_credentials_of_google_that_cannot_be_used_are_said_at_the_start(
    environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = load(data_dir=tmp_path, payload_store_url="gs://acme-payloads/hookpost")
    with pytest.raises(ConfigError, match=f"HOOKPOST_PAYLOAD_STORE_URL=gs://acme-payloads/hookpost: .*{said}"):
        make_payloads(settings, "postgresql:///")


def test_an_azure_without_an_account_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    settings = load(data_dir=tmp_path, payload_store_url="az://acme-payloads")
    with pytest.raises(
        ConfigError, match=r"HOOKPOST_PAYLOAD_STORE_URL=az://acme-payloads: .*Account must be specified"
    ):
        make_payloads(settings, "postgresql:///")


async def test_what_an_address_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(ValueError, match="Account must be specified"):
        ObjectStore("az://container/prefix")


async def test_the_first_put_asks_whether_the_store_is_ours_and_a_refusal_is_asked_again(tmp_path: Path) -> None:
    asked: list[bool] = [False, True]

    async def ours(objects: ObjectStore) -> None:
        if not asked.pop(0):
            raise StoreUnavailable("not ours")

    objects = ObjectStore((tmp_path / "payloads").as_uri(), before_first_put=ours)
    assert not (tmp_path / "payloads").exists(), "no folder before it is needed"
    with pytest.raises(StoreUnavailable, match="not ours"):
        await objects.put("a/b", PAYLOAD)
    await objects.put("a/b", PAYLOAD)
    await objects.put("a/c", PAYLOAD)
    assert asked == []
