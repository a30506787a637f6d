"""Where the encryption keys come from: a setting, a file, or the file that Hookpost makes beside its own database.

The file holds one ``id:BASE64`` a line, the key that seals first. It is made once, with mode 0600, complete or not at
all, and never overwritten: what it holds cannot be made again, and without it the database's secrets are lost.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import stat
from pathlib import Path

from hookpost import telemetry
from hookpost.app.config import ConfigError, Settings
from hookpost.policy.sealing import KEY_BYTES, Keyring, KeyringError, parse_keyring, show_key
from hookpost.storage.acting import Actor, act_as
from hookpost.storage.contract import KeysMissing
from hookpost.storage.postgres.audit import record_rotation
from hookpost.storage.postgres.store import PostgresStore
from hookpost.storage.postgres.vault import Vault, check_keys, make_platform_key, needed_keys

FILE_NAME = "encryption.keys"
# How long another rotation may take over its step.
OTHERS_S = 0.5
# The key ids that we make tell one key from another, wherever they are named.
_ID_BYTES = 4
# A keyring has a few lines; a larger file is another one.
_FILE_BYTES_MAX = 16 * 1024


def key_file(settings: Settings) -> Path:
    """The file of keys, if it is a file that they come from."""
    return settings.encryption_key_file or settings.data_dir / FILE_NAME


def load_keyring(settings: Settings) -> Keyring:
    """The installation's keys. Raises ConfigError, which shows nothing of them."""
    if settings.encryption_keys is not None:
        return parse_keyring(settings.encryption_keys.get_secret_value())
    path = key_file(settings)
    try:
        return parse_keyring(_read(path))
    except FileNotFoundError:
        raise ConfigError(
            f"there are no encryption keys: set HOOKPOST_ENCRYPTION_KEYS (`hookpost keys new-encryption-key` makes a "
            f"key), or HOOKPOST_ENCRYPTION_KEY_FILE; there is no {path}"
        ) from None
    except KeyringError as error:
        raise ConfigError(f"{path}: {error}") from None


def make_vault(settings: Settings) -> Vault:
    """What a process seals and opens with. Raises ConfigError."""
    return Vault(load_keyring(settings))


async def prepare_keys(settings: Settings, dsn: str) -> None:
    """See that there are keys, and that they are those of this database. Beside an embedded database the first one is
    made here. Raises ConfigError and KeysMissing."""
    path = key_file(settings)
    embedded = settings.database_url is None and settings.encryption_keys is None
    if embedded and not path.exists() and settings.encryption_key_file is None:
        needed = await needed_keys(dsn)
        if needed:
            raise KeysMissing(
                f"secrets in the database are sealed with the encryption key {', '.join(needed)}, and its file {path} "
                "is gone: put it back; without it they are lost (docs/operations.md, Encryption keys)"
            )
        _make(path)
        telemetry.log("encryption_key_made", path=path)
    vault = make_vault(settings)
    await check_keys(dsn, vault.ring)
    await make_platform_key(dsn, vault)


def new_key() -> str:
    """A fresh key as a setting or a line of the file."""
    return show_key("k" + secrets.token_hex(_ID_BYTES), secrets.token_bytes(KEY_BYTES))


def add_key(path: Path) -> str:
    """Put a fresh key in front of those in the file; returns its id. Raises ConfigError and OSError."""
    try:
        before = _read(path)
        parse_keyring(before)
        fresh = new_key()
        parse_keyring(f"{fresh}\n{before}")
    except KeyringError as error:
        raise ConfigError(f"{path}: {error}") from None
    _replace(path, f"{fresh}\n{before.lstrip()}")
    return fresh.partition(":")[0]


async def rotate(settings: Settings, dsn: str) -> tuple[str, int]:
    """Wrap all data keys with the first key; returns its id and how many that were. Raises KeysMissing."""
    vault = make_vault(settings)
    await check_keys(dsn, vault.ring)
    first, count = vault.ring.ids[0], 0
    store = PostgresStore(dsn, application="hookpost keys", size_max=1, vault=vault)
    await store.open()
    try:
        while (step := await store.rewrap()).left:
            count += step.count
            if not step.count:  # another rotation holds what is left
                await asyncio.sleep(OTHERS_S)
        count += step.count
    finally:
        await store.close()
    if count:
        act_as(Actor("cli"))
        await record_rotation(dsn, vault, first, count)
    return first, count


def _read(path: Path) -> str:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mode & stat.S_IRWXO:
            raise ConfigError(f"{path} can be read by everybody: `chmod 600 {path}` first")
        return file.read(_FILE_BYTES_MAX).decode("utf-8", "replace")


def _make(path: Path) -> None:
    """Two that start at once agree on the file of the first."""
    fresh = _written(path, new_key() + "\n")
    try:
        os.link(fresh, path)
    except FileExistsError:
        return
    finally:
        fresh.unlink()
    _sync_folder(path)


def _replace(path: Path, text: str) -> None:
    _written(path, text).replace(path)
    _sync_folder(path)


def _written(path: Path, text: str) -> Path:
    """A file beside it that holds the text and is on disk."""
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    return fresh


def _sync_folder(path: Path) -> None:
    """The name itself has to survive a crash of the machine."""
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
