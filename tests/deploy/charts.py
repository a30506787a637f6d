"""What the Helm chart is rendered with, and what it was rendered from.

Helm is a program of its own that few test machines have, so what it made is kept beside the tests, with a digest of the
chart: a chart that was changed and not rendered again fails. `make chart` renders it (needs Helm 3 in the PATH).
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any, Final

from tests.patience import PATIENCE_S

CHART: Final = Path(__file__).parents[2] / "deploy/helm/hookpost"
RENDERED: Final = Path(__file__).parent / "rendered"

_NEEDED: Final = {"existingSecret": "hookpost", "image": {"repository": "registry.example.com/hookpost"}}

VALUES: Final[dict[str, dict[str, Any]]] = {
    "default": _NEEDED,
    "everything": {
        "existingSecret": "hookpost",
        "extraSecret": "hookpost-bucket",
        "image": {
            "repository": "registry.example.com/hookpost",
            "digest": "sha256:" + "0" * 64,
            "pullSecrets": [{"name": "registry"}],
        },
        "settings": {"HOOKPOST_PAYLOAD_STORE_URL": "s3://bucket/hookpost", "HOOKPOST_PAYLOAD_INLINE_MAX": "16384"},
        "api": {
            "podAnnotations": {"example.com/team": "hooks"},
            "nodeSelector": {"disk": "fast"},
            "tolerations": [{"key": "hooks", "operator": "Exists"}],
        },
        "worker": {"autoscaling": {"mode": "keda"}, "affinity": {"nodeAffinity": {}}},
        "service": {"annotations": {"example.com/lb": "internal"}},
        "ingress": {
            "enabled": True,
            "className": "nginx",
            "hosts": ["hooks.example.com"],
            "tls": [{"secretName": "hooks-tls", "hosts": ["hooks.example.com"]}],
        },
        "networkPolicy": {
            "apiFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}],
            "databaseTo": [{"ipBlock": {"cidr": "10.1.2.3/32"}}],
            "extraEgress": [{"to": [{"ipBlock": {"cidr": "10.1.2.4/32"}}], "ports": [{"port": 9092}]}],
        },
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True, "runbook": "https://wiki.example.com/hookpost"},
    },
    "external": _NEEDED | {"api": {"autoscaling": {"enabled": False}}, "worker": {"autoscaling": {"mode": "external"}}},
    "pool": _NEEDED | {"worker": {"only": True, "pool": "acme"}},
}
"""Sets of values by name: as installed first, all that can be switched on, the other ways to scale, a further pool."""

REFUSED: Final[dict[str, dict[str, Any]]] = {
    "existingSecret": {"image": {"repository": "x"}},
    "image.repository": {"existingSecret": "x"},
    "HOOKPOST_DATABASE_URL": _NEEDED | {"settings": {"HOOKPOST_DATABASE_URL": "postgresql://u:secret@h/d"}},
    "worker.autoscaling.mode": _NEEDED | {"worker": {"autoscaling": {"mode": "yes"}}},
}
"""Values that must not render, by what the message names."""


def digest() -> str:
    """Of all that goes into a rendering."""
    found = hashlib.sha256(json.dumps(VALUES, sort_keys=True).encode())
    for path in sorted(path for path in CHART.rglob("*") if path.is_file()):
        found.update(f"\0{path.relative_to(CHART)}\0".encode() + path.read_bytes())
    return found.hexdigest()


def helm(name: str, values: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """`helm template` with these values."""
    return subprocess.run(
        ["helm", "template", name, CHART, "--namespace", "hooks", "--kube-version", "1.31.0", "--values", "-"],
        input=json.dumps(values), capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip


def render() -> None:
    """Render all sets anew, and see that what must be refused is. Raises SystemExit with Helm's own words."""
    for name, values in VALUES.items():
        done = helm("hookpost", values)
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr}")
        (RENDERED / f"{name}.yaml").write_text(f"# chart {digest()}\n{done.stdout}", encoding="utf-8")
    for named, values in REFUSED.items():
        done = helm("hookpost", values)
        if done.returncode == 0 or named not in done.stderr:
            raise SystemExit(f"values without a right {named} must be refused, and were answered: {done.stderr}")
