"""Where the encryption keys come from: the file that is made, read and added to, and what a wrong one is answered with."""

from __future__ import annotations

import stat
from base64 import b64encode
from pathlib import Path

import pytest

from hookpost.app import keyring
from hookpost.app.config import ConfigError, Settings, as_environment, load
from hookpost.policy.sealing import Keyring, parse_keyring
from hookpost.storage.contract import KeysMissing
from hookpost.storage.postgres.store import PostgresStore
from hookpost.storage.postgres.vault import needed_keys

GIVEN = "k1:" + b64encode(b"1" * 32).decode()
OTHER = "k2:" + b64encode(b"2" * 32).decode()


def settings(folder: Path, **given: object) -> Settings:
    return load(data_dir=folder, **given)


async def test_the_first_start_makes_a_file_that_only_its_owner_reads_and_later_ones_keep_it(
    tmp_path: Path, database: str
) -> None:
    made = settings(tmp_path)
    await keyring.prepare_keys(made, database)
    path = tmp_path / "encryption.keys"
    text = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path], "nothing beside it"
    await keyring.prepare_keys(made, database)
    assert path.read_text() == text
    [key_id] = parse_keyring(text).ids
    assert await needed_keys(database) == [key_id], "known from the first start on"
    path.unlink()
    with pytest.raises(KeysMissing, match=rf"encryption key {key_id}, and its file .* is gone"):
        await keyring.prepare_keys(made, database)
    assert not path.exists()


async def test_beside_a_database_that_is_not_ours_the_operator_brings_the_keys(tmp_path: Path, database: str) -> None:
    with pytest.raises(ConfigError, match="HOOKPOST_ENCRYPTION_KEYS"):
        await keyring.prepare_keys(settings(tmp_path, database_url=database), database)
    assert list(tmp_path.iterdir()) == []
    given = settings(tmp_path, database_url=database, encryption_keys=GIVEN)
    await keyring.prepare_keys(given, database)
    assert keyring.load_keyring(given) == Keyring({"k1": b"1" * 32})
    with pytest.raises(KeysMissing, match="the encryption key k1"):
        await keyring.prepare_keys(settings(tmp_path, database_url=database, encryption_keys=OTHER), database)


def test_a_file_of_keys_is_read_whole_or_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    given = settings(tmp_path, encryption_key_file=path)
    with pytest.raises(ConfigError, match=r"there is no .*/keys"):
        keyring.load_keyring(given)
    path.write_text(f"{OTHER}\n{GIVEN}\n")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        keyring.load_keyring(given)
    path.chmod(0o640)
    assert keyring.load_keyring(given).ids == ("k2", "k1")
    path.write_text("nonsense")
    with pytest.raises(ConfigError, match="encryption key 1 is not of the form"):
        keyring.load_keyring(given)
    with pytest.raises(ConfigError, match="encryption key 1"):
        keyring.add_key(path)
    assert path.read_text() == "nonsense"


def test_a_key_that_is_added_stands_first_and_the_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(GIVEN + "\n")
    path.chmod(0o600)
    key_id = keyring.add_key(path)
    assert parse_keyring(path.read_text()).ids == (key_id, "k1")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_keys_of_the_environment_are_checked_masked_and_handed_to_children(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="HOOKPOST_ENCRYPTION_KEYS") as refused:
        settings(tmp_path, encryption_keys="k1:short")
    assert "short" not in str(refused.value)
    given = settings(tmp_path, encryption_keys=f"{OTHER},{GIVEN}")
    assert GIVEN not in repr(given)
    assert as_environment(given)["HOOKPOST_ENCRYPTION_KEYS"] == f"{OTHER},{GIVEN}"
    assert settings(tmp_path, headers_allow="X-A-*, Authorization").headers_allow == ("x-a-*", "authorization")
    with pytest.raises(ConfigError, match="no name of a header"):
        settings(tmp_path, headers_allow="x a")


async def test_a_rotation_wraps_everything_with_the_first_key_and_says_so_in_the_log(
    tmp_path: Path, database: str, store: PostgresStore
) -> None:
    await keyring.prepare_keys(settings(tmp_path, encryption_keys=GIVEN), database)
    both = settings(tmp_path, encryption_keys=f"{OTHER},{GIVEN}")
    assert await keyring.rotate(both, database) == ("k2", 1)
    assert await keyring.rotate(both, database) == ("k2", 0)
    assert await needed_keys(database) == ["k2"]
    page = await store.list_audit(None, action=None, since=None, until=None, after=None, limit=10)
    assert [(row["action"], row["target"], row["actor"]) for row in page.rows] == [("encryption.rotate", "k2", "cli")]
