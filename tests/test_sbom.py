"""The bill of materials names what a user installs, and the locks let nothing else in."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
from sbom import main, sbom  # noqa: E402 - a script, not a package

LOCKS = ["requirements.lock", "requirements-dev.lock", "requirements-build.lock"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def blocks(lock: str) -> list[str]:
    """The requirements of a lock, each with its hashes."""
    text = re.sub(r"(?m)^\s*#.*\n", "", (ROOT / lock).read_text())
    return re.findall(r"(?m)^\S[^\n]*(?:\n[ ]+[^\n]*)*", text)


@pytest.mark.parametrize("lock", LOCKS)
def test_every_requirement_of_every_lock_is_pinned_with_hashes_and_names_no_index(lock: str) -> None:
    requirements = blocks(lock)
    assert len(requirements) > 3
    for requirement in requirements:
        assert re.match(r"[A-Za-z0-9._-]+==[^\s;]+( ;|\s|$)", requirement), requirement
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", requirement), requirement
    text = (ROOT / lock).read_text()
    assert "index-url" not in text and "http" not in re.sub(r"(?m)^[a-z0-9-]*http[a-z0-9-]*==|#.*$", "", text)


def test_what_the_project_asks_for_is_in_its_locks() -> None:
    for lock, asked in [
        (LOCKS[0], PROJECT["project"]["dependencies"]),
        (LOCKS[1], PROJECT["dependency-groups"]["dev"]),
        (LOCKS[2], PROJECT["build-system"]["requires"]),
    ]:
        pinned = {block.partition("==")[0] for block in blocks(lock)}
        wanted = {re.match(r"[A-Za-z0-9._-]+", each)[0].lower() for each in asked}  # type: ignore[index]
        assert wanted <= pinned


def test_both_locks_agree_on_what_they_share() -> None:
    run, dev = (dict(re.match(r"(\S+?)==(\S+)", block).groups() for block in blocks(lock)) for lock in LOCKS[:2])  # type: ignore[union-attr]
    assert run.items() <= dev.items()


def test_the_bill_of_materials_lists_the_lock_and_what_wheels_carry(tmp_path: Path) -> None:
    output = tmp_path / "sbom.json"
    main(output)
    document = json.loads(output.read_text())
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", document["serialNumber"])
    pinned = {block.split()[0] for block in blocks("requirements.lock")}
    packages = [each for each in document["components"] if each["purl"].startswith("pkg:pypi/")]
    assert {f"{each['name']}=={each['version']}" for each in packages} == pinned
    assert all(each["externalReferences"] for each in packages)
    inside = {each["name"] for each in document["components"] if each["purl"].startswith("pkg:generic/")}
    assert {"libcurl", "openssl", "postgresql"} <= inside
    refs = [each["bom-ref"] for each in document["components"]]
    assert len(refs) == len(set(refs))
    assert {each["ref"] for each in document["dependencies"]} == {*refs, document["metadata"]["component"]["bom-ref"]}
    assert all(set(each["dependsOn"]) <= set(refs) for each in document["dependencies"])
    licensed = [each for each in packages if "licenses" in each]
    assert len(licensed) > len(packages) * 0.8


def test_the_same_lock_gives_the_same_bytes() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert json.dumps(sbom(lock, PROJECT["project"])) == json.dumps(sbom(lock, PROJECT["project"]))
