"""A real broker behind TLS and a password: who has both comes in, and whoever has not is told why, without a secret."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import trustme
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from uuid_utils.compat import uuid7

from hookpost.policy.journal import KafkaAddress, parse_address
from hookpost.storage.contract import StoreUnavailable, Verdict
from hookpost.storage.kafka.clients import Patience, Reader
from hookpost.storage.kafka.record import decode
from hookpost.storage.kafka.store import KafkaStore
from hookpost.storage.postgres.vault import Vault
from tests.conftest import KEYS, require
from tests.e2e.ports import free_port
from tests.kafka.cluster import ASK_S, Cluster, Guard, missing
from tests.kafka.driver import PATIENT
from tests.storage.driver import PATIENCE_S, SHARDS, event, new_tenant, version

pytestmark = pytest.mark.kafka

# Whoever is refused is told so when time is up.
SHORT_S = 1.0
HURRIED = Patience(answer_s=SHORT_S)
USER, PASSWORD = "hookpost", "canary p@ss/word"
# Topics that the user may use, and what it may do with them, as docs/kafka.md says: nothing else is allowed.
GUARDED = "guarded."
NEEDED = ("DESCRIBE", "DESCRIBE_CONFIGS", "READ", "WRITE", "CREATE", "ALTER")


@dataclass(frozen=True)
class Door:
    """Where the broker listens, the CA that its certificate is of, and the plain door beside it."""

    port: int
    ca: Path
    plain: str

    def admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.plain})

    def url(
        self,
        *,
        password: str = PASSWORD,
        mechanism: str = "SCRAM-SHA-512",
        ca: Path | None = None,
        topics: str = GUARDED,
    ) -> str:
        quoted = password.replace("@", "%40").replace("/", "%2F").replace(" ", "%20")
        query = f"mechanism={mechanism}&ca_file={ca or self.ca}"
        return f"kafka://{USER}:{quoted}@localhost:{self.port}/{topics}{uuid7().hex}?{query}"


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    """One broker: what is shown does not depend on their number."""
    lacks = missing()
    require(lacks is None, lacks or "")
    folder = Path(tempfile.mkdtemp(prefix="hookpost-kafka-"))
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    issued = ca.issue_cert("localhost")
    key = load_pem_private_key(issued.private_key_pem.bytes(), None)
    # The form that Java reads.
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "broker.pem").write_bytes(pem + b"".join(each.bytes() for each in issued.cert_chain_pems))
    port = free_port()
    cluster = Cluster(folder, brokers=1, guard=Guard(folder / "broker.pem", USER, PASSWORD, port))
    try:
        cluster.start()
        scram = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        admin = AdminClient({"bootstrap.servers": cluster.servers})
        change = UserScramCredentialUpsertion(USER, scram, PASSWORD.encode())
        for done in admin.alter_user_scram_credentials([change], request_timeout=ASK_S).values():
            done.result(ASK_S)
        allowed = [_allowed(AclOperation[name]) for name in NEEDED]
        for done in admin.create_acls(allowed, request_timeout=ASK_S).values():
            done.result(ASK_S)
        yield Door(port, folder / "ca.pem", cluster.servers)
    finally:
        cluster.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _allowed(operation: AclOperation) -> AclBinding:
    return AclBinding(
        ResourceType.TOPIC,
        GUARDED,
        ResourcePatternType.PREFIXED,
        f"User:{USER}",
        "*",
        operation,
        AclPermissionType.ALLOW,
    )


@asynccontextmanager
async def opened(database: str, url: str, **options: Any) -> AsyncIterator[KafkaStore]:
    store = KafkaStore(
        database,
        address=parse_address(url),
        **{
            "append_timeout_s": PATIENCE_S,
            "vault": Vault(KEYS),
            "application": "test",
            "patience": PATIENT,
            **options,
        },
    )
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-512", "PLAIN"])
async def test_an_event_goes_through_tls_with_a_password(door: Door, database: str, mechanism: str) -> None:
    url = door.url(mechanism=mechanism)
    async with opened(database, url) as store:
        await store.prepare_topic()
        tenant = await new_tenant(store)
        sent = event(tenant)
        [answer] = await store.append(0, [sent], await version(store, tenant))
        assert answer.verdict is Verdict.NEW
        assert (await store.get_event(tenant, sent.event_id)).event["event_id"] == sent.event_id
        assert await store.journal_fault(ASK_S) is None
        assert await first_of(parse_address(url)) == sent.event_id
        await store.tail.ensure_topic(SHARDS + 1)
        lag, weakness = await store.journal_state()
        assert (sum(lag.values()), weakness is None) == (1, False), "one broker has one copy"


async def first_of(address: KafkaAddress) -> UUID:
    """The event that a worker reads first."""
    reader = Reader(address, heard_s=PATIENCE_S)
    try:
        await reader.assign({0: 0})
        async with asyncio.timeout(PATIENCE_S):
            while not (taken := (await reader.take(SHORT_S))[0]):
                pass
    finally:
        await reader.close()
    return decode(taken[0].value)[0].event_id


async def test_a_topic_that_the_user_may_not_use_is_not_said_to_be_missing(door: Door, database: str) -> None:
    async with opened(database, door.url(topics="others.")) as store:
        assert "authorization failed" in str(await store.journal_fault(ASK_S)).lower()
        for ask in (store.prepare_topic, store.lag, lambda: store.tail.find(uuid7(), {0: 0})):
            with pytest.raises(StoreUnavailable, match=r"(?i)authorization failed"):
                await ask()


async def test_whoever_looks_for_a_topic_that_is_missing_does_not_make_one(door: Door, database: str) -> None:
    """Brokers whose `auto.create.topics.enable` is on, as it is by default, make one for whoever asks for it: with a
    partition of one copy."""
    url = door.url()
    async with opened(database, url, append_timeout_s=SHORT_S, patience=HURRIED) as store:
        tenant = await new_tenant(store)
        with pytest.raises(StoreUnavailable):
            await store.append(0, [event(tenant)], await version(store, tenant))
        await until_refused(lambda: store.journal_fault(ASK_S), "has no topic")
        for ask in (store.tail.topic_id, lambda: store.tail.find(uuid7(), {0: 0})):
            with pytest.raises(StoreUnavailable):
                await ask()
        reader = Reader(parse_address(url), heard_s=SHORT_S)
        await reader.assign({0: 0})
        await reader.take(SHORT_S)
        await reader.close()
        assert parse_address(url).topic not in door.admin().list_topics(timeout=ASK_S).topics


async def until_refused(ask: Callable[[], Awaitable[object]], said: str) -> str:
    """Ask until the reason is told, which a client does not know before a broker has refused it: of a slow one it only
    says that time is up. All that was told."""
    told = ""
    async with asyncio.timeout(PATIENCE_S):
        while said not in told:
            try:
                told += str(await ask())
            except StoreUnavailable as error:
                told += str(error)
    return told


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"password": "canary of a wrong one"}, "refuse the user hookpost: check user, password and mechanism"),
        ({"password": "canary of a wrong one", "mechanism": "PLAIN"}, "refuse the user hookpost"),
        ({"ca": "other"}, "TLS with the brokers fails"),
    ],
)
async def test_whoever_is_not_let_in_is_told_why_and_no_secret_is_repeated(
    door: Door, database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, wrong: dict[str, str], said: str
) -> None:
    given: dict[str, str | Path] = dict(wrong)
    if "ca" in wrong:
        given["ca"] = tmp_path / "other.pem"
        trustme.CA().cert_pem.write_to_path(str(given["ca"]))
    async with opened(database, door.url(**given), append_timeout_s=SHORT_S, patience=HURRIED) as store:  # type: ignore[arg-type]
        tenant = await new_tenant(store)
        versions = await version(store, tenant)
        told = [
            await until_refused(lambda: store.journal_fault(SHORT_S), said),
            await until_refused(lambda: store.append(0, [event(tenant)], versions), said),
            await until_refused(store.prepare_topic, said),
        ]
    assert said in caplog.text
    assert "canary" not in caplog.text + "".join(told)
