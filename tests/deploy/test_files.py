"""Container file, compose files, units, alerts and guides name what there is, and ask for no more rights than they need."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hookpost import __version__
from hookpost.app.config import Settings, unknown_variables
from tests.conftest import require
from tests.deploy.commands import unknown_command

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
COMPOSE = {
    "one machine": ("one-machine.yml",),
    "nodes": ("nodes.yml",),
    "kafka": ("nodes.yml", "kafka.yml"),
}
GUIDES = (
    "README.md",
    "docs/dashboard.md",
    "docs/operations.md",
    "docs/runbook.md",
    "docs/deployment.md",
    "docs/kafka.md",
)
IMAGE = re.compile(r"[a-z0-9./-]+:(?!latest$)[\w.-]+")


def read(path: str | Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


# ---- everything -----------------------------------------------------------------------------------------------------


def test_every_setting_named_for_deployment_is_one() -> None:
    """In deploy/ and in the guides: a mistyped variable is a setting that silently has no effect."""
    files = [path for path in DEPLOY.rglob("*") if path.is_file()] + [ROOT / guide for guide in GUIDES]
    for path in files:
        named = set(re.findall(r"HOOKPOST_[A-Z0-9_]*[A-Z0-9]", path.read_text(encoding="utf-8")))
        # A family of settings is written HOOKPOST_SMTP_….
        named = {name for name in named if f"{name}_…" not in path.read_text(encoding="utf-8")}
        assert unknown_variables(dict.fromkeys(named, "x")) == [], path


# Words of PostgreSQL and PgBouncer.
OTHERS = {
    "archive_mode", "archive_timeout", "ignore_startup_parameters", "log_checkpoints", "max_prepared_statements",
}  # fmt: skip


@pytest.mark.parametrize("guide", GUIDES)
def test_every_name_in_the_guides_is_in_the_code(guide: str) -> None:
    """Log lines, error codes, reasons, fields and metrics: somebody at night looks for them by these words."""
    text = re.sub(r"^```.*?^```", "", read(guide), flags=re.MULTILINE | re.DOTALL)
    code = "\n".join(path.read_text("utf-8") for kind in ("py", "sql") for path in (ROOT / "src").rglob(f"*.{kind}"))
    known = set(re.findall(r"[a-z]+(?:_[a-z0-9]+)+", code)) | OTHERS
    metrics = set(re.findall(r"hookpost_[a-z0-9_]+", read("docs/metrics.md")))
    named = set(re.findall(r"`([a-z]+(?:_[a-z0-9]+)+)`", text))
    assert sorted(name for name in named if name not in known | metrics) == []


def commands_in(text: str) -> Iterator[list[str]]:
    """Every `hookpost …` between backticks or in a block of commands; comments and what follows a | or ; left out."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    for line in lines:
        found = re.match(r"(?:\S*/)?hookpost (\S.*)", re.split(r"\s#|[|;&]", line)[0].strip())
        if found is not None and not found[1].startswith(("-", "…")):
            yield shlex.split(found[1].replace("[", "").replace("]", ""))


@pytest.mark.parametrize("guide", GUIDES)
def test_every_command_in_the_guides_exists(guide: str) -> None:
    commands = list(commands_in(read(guide)))
    assert commands
    assert [(words, fault) for words in commands if (fault := unknown_command(words))] == []


def test_an_unknown_command_is_found() -> None:
    assert unknown_command(["shards", "remove"]) == "command remove"
    assert unknown_command(["sending", "--stop"]) == "option --stop"
    assert list(commands_in("`hookpost sending --go`, `hookpost_up`\n```sh\nhookpost doctor  # look\n```\n")) == [
        ["doctor"],
        ["sending", "--go"],
    ]


def test_every_alert_links_its_section_of_the_runbook() -> None:
    (group,) = yaml.safe_load(read("deploy/prometheus/alerts.yml"))["groups"]
    alerts = [rule["alert"] for rule in group["rules"]]
    sections = dict(
        re.findall(r"^## (Hookpost\w+)\n(.*?)(?=^## |\Z)", read("docs/runbook.md"), re.MULTILINE | re.DOTALL)
    )
    assert list(sections) == alerts
    for rule in group["rules"]:
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"
        rows = re.findall(r"^\| (means|look|do|over) \| \S", sections[rule["alert"]], re.MULTILINE)
        assert rows == ["means", "look", "do", "over"], rule["alert"]


# ---- the container --------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", read("deploy/Containerfile"), flags=re.MULTILINE).replace("\\\n", " ")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in text.splitlines()) if name]


def last_stage() -> list[tuple[str, str]]:
    whole = instructions()
    return whole[max(at for at, (name, _) in enumerate(whole) if name == "FROM") :]


def test_the_container_runs_as_a_number_without_a_shell_in_between() -> None:
    stage = dict(last_stage())
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", stage["USER"])
    assert json.loads(stage["ENTRYPOINT"]) == ["hookpost"]
    assert unknown_command(json.loads(stage["CMD"])) is None
    assert stage["STOPSIGNAL"] == "SIGTERM"
    port = Settings.model_fields["port"].default
    assert str(port) in stage["EXPOSE"].split()
    check = json.loads(stage["HEALTHCHECK"].partition("CMD ")[2])
    assert f"127.0.0.1:{port}/healthz" in check[-1]


def test_what_is_built_is_pinned_and_its_sources_exist_and_are_let_in() -> None:
    whole = instructions()
    stages = [rest for name, rest in whole if name == "FROM"]
    assert len(stages) == 2 and all("latest" not in stage and ":" in stage for stage in stages)
    installs = [
        line
        for name, rest in whole
        if name == "RUN"
        for line in rest.split("&&")
        if "pip" in line and "install" in line
    ]
    assert installs and all(
        "--require-hashes --only-binary :all:" in line or "--no-deps --no-index" in line for line in installs
    )
    let_in = [line.removeprefix("!") for line in read(".dockerignore").splitlines() if line.startswith("!")]
    sources = [word for name, rest in whole if name == "COPY" and "--from" not in rest for word in rest.split()[:-1]]
    for source in sources:
        assert list(ROOT.glob(source)), source
        assert any(source == pattern or fnmatch.fnmatch(source, pattern) for pattern in let_in), source
    # The last stage brings one folder in and no compiler, no index, no pip of its own.
    assert [rest for name, rest in last_stage() if name == "COPY"] == ["--from=build /opt/hookpost /opt/hookpost"]
    assert not any("pip" in rest or "apt-get" in rest for _, rest in last_stage())


# ---- compose --------------------------------------------------------------------------------------------------------


def composed(files: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The services of files laid over one another, as compose does: mappings are merged, everything else replaced."""
    services: dict[str, dict[str, Any]] = {}
    for file in files:
        for name, service in yaml.safe_load(read(f"deploy/compose/{file}"))["services"].items():
            before = services.get(name, {})
            environment = {**before.get("environment", {}), **service.get("environment", {})}
            services[name] = {**before, **service, "environment": environment}
    return services


def seconds(text: str) -> float:
    assert text.endswith("s"), text
    return float(text[:-1])


@pytest.mark.parametrize("files", COMPOSE.values(), ids=COMPOSE)
def test_our_services_are_read_only_and_without_rights_and_start_commands_that_exist(files: tuple[str, ...]) -> None:
    ours = {name: each for name, each in composed(files).items() if each["image"].startswith("hookpost")}
    assert ours
    for name, service in ours.items():
        assert service["read_only"] is True and service["user"] == "10001:10001" and service["cap_drop"] == ["ALL"], (
            name
        )
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert unknown_command(service["command"]) is None
        assert any(volume.endswith(":/var/lib/hookpost") for volume in service["volumes"])
        assert any(mount.startswith("/tmp:") for mount in service["tmpfs"])
        assert service["image"].endswith(f":{__version__}")
        build = service["build"]
        assert (DEPLOY / "compose" / build["context"] / build["dockerfile"]).is_file()
        assert (ROOT / build.get("args", {}).get("LOCK", "requirements.lock")).is_file()
        stop_s = float(service["environment"].get("HOOKPOST_STOP_S", Settings.model_fields["stop_s"].default))
        assert seconds(service["stop_grace_period"]) >= stop_s + 10


@pytest.mark.parametrize("files", COMPOSE.values(), ids=COMPOSE)
def test_images_have_tags_ports_are_ours_and_secrets_are_asked_for(files: tuple[str, ...]) -> None:
    for name, service in composed(files).items():
        assert IMAGE.fullmatch(service["image"]), name
        for published in service.get("ports", []):
            assert published.startswith("127.0.0.1:") and published.endswith(":8080")
    for file in files:
        for variable, default in re.findall(r"\$\{(\w+):(\S?)[^}]*\}", read(f"deploy/compose/{file}")):
            secret = variable in ("POSTGRES_PASSWORD", "HOOKPOST_ENCRYPTION_KEYS")
            assert not secret or default == "?", variable


def test_the_database_and_the_brokers_are_reached_by_hookpost_alone() -> None:
    networks = yaml.safe_load(read("deploy/compose/nodes.yml"))["networks"]
    assert networks["inside"] == {"internal": True}
    for name, service in composed(COMPOSE["kafka"]).items():
        if name == "postgres" or name.startswith("kafka"):
            assert service["networks"] == ["inside"] and "ports" not in service


def test_three_brokers_are_what_the_journal_asks_for() -> None:
    services = composed(COMPOSE["kafka"])
    brokers = {name: each["environment"] for name, each in services.items() if name.startswith("kafka")}
    addresses = ",".join(f"{name}:9092" for name in brokers)
    assert {each["KAFKA_NODE_ID"] for each in brokers.values()} == {1, 2, 3}
    for name, each in brokers.items():
        assert each["KAFKA_ADVERTISED_LISTENERS"] == f"INSIDE://{name}:9092"
        assert (each["KAFKA_DEFAULT_REPLICATION_FACTOR"], each["KAFKA_MIN_INSYNC_REPLICAS"]) == (3, 2)
    for name in ("migrate", "api-1", "api-2", "worker-1", "worker-2"):
        given = services[name]["environment"]
        assert given["HOOKPOST_JOURNAL_URL"] == f"kafka://{addresses}/hookpost.journal"
        Settings(journal_url=given["HOOKPOST_JOURNAL_URL"])


# ---- systemd --------------------------------------------------------------------------------------------------------


def unit(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_start_commands_that_exist_and_hold_secrets_in_no_line(path: Path) -> None:
    lines = unit(path)
    (start,) = lines["ExecStart"]
    program, *words = shlex.split(start)
    assert program == "/opt/hookpost/bin/hookpost" and unknown_command(words) is None
    assert not re.search(
        r"^Environment=HOOKPOST_(DATABASE_URL|ADMIN_KEY|ENCRYPTION_KEYS|JOURNAL_URL)", path.read_text(), re.MULTILINE
    )
    assert lines["NoNewPrivileges"] == ["yes"] and lines["ProtectSystem"] == ["strict"]
    assert "DynamicUser" in lines or lines["User"] == ["hookpost"]


def test_units_are_given_the_time_that_a_stop_takes() -> None:
    """`serve` stops API and workers one after the other, 5 s beyond STOP_S each, then the database (60 s)."""
    stop_s = Settings.model_fields["stop_s"].default
    assert int(unit(DEPLOY / "systemd/hookpost.service")["TimeoutStopSec"][0]) >= 2 * (stop_s + 5) + 60
    for name in ("api", "worker"):
        lines = unit(DEPLOY / f"systemd/hookpost-{name}@.service")
        (own,) = [line for line in lines["Environment"] if line.startswith("HOOKPOST_STOP_S=")]
        assert int(lines["TimeoutStopSec"][0]) >= int(own.partition("=")[2]) + 10


def test_systemd_itself_understands_the_units_and_finds_little_exposed(tmp_path: Path) -> None:
    require(shutil.which("systemd-analyze") is not None, "systemd-analyze is not installed (Debian: systemd)")
    names = []
    for path in UNITS:
        # The program is not installed where the tests run, and a template is looked at by an instance of it.
        name = path.name.replace("@.", "@1.")
        (tmp_path / name).write_text(path.read_text().replace("/opt/hookpost/bin/hookpost", "/bin/true"))
        names.append(tmp_path / name)
    verified = subprocess.run(["systemd-analyze", "verify", *names], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    for name in names:
        looked = subprocess.run(
            ["systemd-analyze", "security", "--offline=yes", name], capture_output=True, text=True, check=True
        )
        found = re.search(r"Overall exposure level for \S+: ([\d.]+)", looked.stdout)
        assert found is not None and float(found[1]) <= 3, looked.stdout
