"""What Helm made of the chart keeps the promises of docs/operations.md, Deploy."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from hookpost.app.config import SECRET_FIELDS, Settings, unknown_variables
from tests.deploy.charts import CHART, RENDERED, VALUES, digest
from tests.deploy.commands import unknown_command

SECRETS = {f"HOOKPOST_{name.upper()}" for name in SECRET_FIELDS}


def documents(name: str) -> list[dict[str, Any]]:
    loaded = yaml.safe_load_all((RENDERED / f"{name}.yaml").read_text(encoding="utf-8"))
    return [document for document in loaded if document]


def of_kind(name: str, kind: str) -> dict[str, dict[str, Any]]:
    """The documents of a kind, by their names."""
    return {each["metadata"]["name"]: each for each in documents(name) if each["kind"] == kind}


def pods(name: str) -> dict[str, dict[str, Any]]:
    return {
        each["metadata"]["name"]: each["spec"]["template"]["spec"]
        for each in documents(name)
        if each["kind"] in ("Deployment", "Job")
    }


def container(pod: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod["containers"]
    return found


@pytest.mark.parametrize("name", VALUES)
def test_the_renderings_are_of_this_chart(name: str) -> None:
    first = (RENDERED / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
    assert first == f"# chart {digest()}", "the chart was changed: `make chart` (needs Helm 3)"


@pytest.mark.parametrize("name", VALUES)
def test_every_pod_runs_without_rights_and_writes_to_its_two_folders_alone(name: str) -> None:
    for pod in pods(name).values():
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        rights = container(pod)["securityContext"]
        assert rights["readOnlyRootFilesystem"] is True and rights["allowPrivilegeEscalation"] is False
        assert rights["capabilities"] == {"drop": ["ALL"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in container(pod)["volumeMounts"]}
        assert mounts == {"tmp": "/tmp", "data": "/var/lib/hookpost"}
        assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
        assert container(pod)["resources"]["requests"] and container(pod)["resources"]["limits"]["memory"]
        assert not container(pod)["image"].endswith((":latest", ":"))


@pytest.mark.parametrize("name", VALUES)
def test_secrets_come_by_reference_and_settings_are_ones_that_there_are(name: str) -> None:
    for pod in pods(name).values():
        variables = {each["name"]: each for each in container(pod)["env"]}
        assert len(variables) == len(container(pod)["env"])
        assert unknown_variables(dict.fromkeys(variables, "x")) == []
        for secret in SECRETS & set(variables):
            reference = variables[secret].get("valueFrom", {}).get("secretKeyRef")
            assert reference == {"name": "hookpost", "key": secret} or secret == "HOOKPOST_PAYLOAD_STORE_URL"
        given = {key: each["value"] for key, each in variables.items() if "value" in each}
        # The values themselves are in range.
        Settings(**{key.removeprefix("HOOKPOST_").lower(): value for key, value in given.items()})
        assert unknown_command(container(pod)["args"]) is None


def test_a_stop_is_given_more_time_than_the_longest_request_and_its_settle() -> None:
    for pod in pods("default").values():
        if "terminationGracePeriodSeconds" not in pod:
            continue
        stop_s = next(float(e["value"]) for e in container(pod)["env"] if e["name"] == "HOOKPOST_STOP_S")
        assert stop_s > Settings.model_fields["total_timeout_max_s"].default
        assert pod["terminationGracePeriodSeconds"] >= stop_s + 5 + 10


def test_probes_ask_what_answers_and_events_are_accepted_without_workers() -> None:
    deployed = pods("default")
    api, worker = container(deployed["hookpost-api"]), container(deployed["hookpost-worker"])
    assert api["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    assert api["readinessProbe"]["httpGet"] == {"path": "/readyz?shards=false", "port": "http"}
    assert worker["livenessProbe"]["httpGet"] == {"path": "/metrics", "port": "metrics"}
    assert {port["name"]: port["containerPort"] for port in api["ports"]} == {"http": 8080, "metrics": 9464}
    variables = {each["name"]: each.get("value") for each in api["env"]}
    assert (variables["HOOKPOST_PORT"], variables["HOOKPOST_METRICS_LISTEN"]) == ("8080", "0.0.0.0:9464")


def test_the_schema_is_migrated_before_pods_change_and_with_the_new_image() -> None:
    (job,) = of_kind("default", "Job").values()
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert len({container(pod)["image"] for pod in pods("default").values()}) == 1
    # Nothing that the chart makes later is needed by it.
    assert "envFrom" not in container(pods("default")["hookpost-migrate"])
    assert of_kind("pool", "Job") == {}
    strategies = [each["spec"]["strategy"] for each in of_kind("default", "Deployment").values()]
    assert all(each["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0} for each in strategies)


def test_workers_are_added_by_the_age_of_the_journal_of_their_pool() -> None:
    (scaled,) = of_kind("everything", "ScaledObject").values()
    age, lag = (trigger["metadata"] for trigger in scaled["spec"]["triggers"])
    assert age["query"] == 'max(hookpost_journal_unread_seconds{pool="default"})'
    # What waits in Kafka is not in the journal yet. Without Kafka there is no answer, which is no reason to scale.
    assert lag["query"] == 'sum(max by (shard) (hookpost_kafka_lag_records{pool="default"}))'
    assert lag["ignoreNullValues"] == "true"
    assert scaled["spec"]["scaleTargetRef"]["name"] == "hookpost-worker"
    assert scaled["spec"]["maxReplicaCount"] <= Settings.model_fields["shards"].default
    external = of_kind("external", "HorizontalPodAutoscaler")["hookpost-worker"]["spec"]["metrics"][0]["external"]
    assert external["metric"]["name"] == "hookpost_journal_unread_seconds"
    for name in ("everything", "external"):
        # Who scales does not also set a number, or every upgrade would undo it.
        assert "replicas" not in of_kind(name, "Deployment")["hookpost-worker"]["spec"]
    assert of_kind("external", "Deployment")["hookpost-api"]["spec"]["replicas"] == 2
    assert set(of_kind("default", "HorizontalPodAutoscaler")) == {"hookpost-api"}


def test_workers_reach_the_internet_and_nothing_inside_and_only_the_api_is_reached() -> None:
    policies = of_kind("default", "NetworkPolicy")
    assert set(policies) == {"hookpost-api", "hookpost-worker", "hookpost-migrate"}
    for policy in policies.values():
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    out = [
        peer["ipBlock"]
        for rule in policies["hookpost-worker"]["spec"]["egress"]
        for peer in rule.get("to", [])
        if "ipBlock" in peer
    ]
    (internet,) = [block for block in out if block["cidr"] == "0.0.0.0/0"]
    assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"} <= set(internet["except"])
    for name in ("hookpost-api", "hookpost-migrate"):
        assert "0.0.0.0/0" not in str(policies[name])
    open_to_all = [
        name for name, each in policies.items() if any("from" not in rule for rule in each["spec"]["ingress"])
    ]
    assert open_to_all == ["hookpost-api"]
    (rule,) = [rule for rule in policies["hookpost-api"]["spec"]["ingress"] if "from" not in rule]
    assert rule["ports"] == [{"port": "http", "protocol": "TCP"}]


def test_selectors_find_their_pods_and_no_others() -> None:
    for name in VALUES:
        labels = {
            each: spec["spec"]["template"]["metadata"]["labels"] for each, spec in of_kind(name, "Deployment").items()
        }
        for kind in ("Service", "PodDisruptionBudget", "Deployment"):
            for each in of_kind(name, kind).values():
                selector = each["spec"]["selector"]
                wanted = selector.get("matchLabels", selector).items()
                assert [who for who, has in labels.items() if wanted <= has.items()] == [each["metadata"]["name"]]


def test_alerts_are_those_of_prometheus_and_link_the_runbook_where_it_is() -> None:
    (rule,) = of_kind("everything", "PrometheusRule").values()
    plain = yaml.safe_load((CHART.parents[1] / "prometheus/alerts.yml").read_text(encoding="utf-8"))
    rendered = [alert for group in rule["spec"]["groups"] for alert in group["rules"]]
    for alert in rendered:
        name = alert["alert"].lower()
        assert alert["annotations"].pop("runbook_url") == f"https://wiki.example.com/hookpost#{name}"
    for alert in plain["groups"][0]["rules"]:
        del alert["annotations"]["runbook_url"]
    assert rendered == plain["groups"][0]["rules"]


def test_what_costs_nobody_asked_for_is_off_at_first() -> None:
    kinds = {each["kind"] for each in documents("default")}
    assert kinds == {"Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler", "Job", "NetworkPolicy"}
    assert {"Ingress", "PodMonitor", "PrometheusRule", "ScaledObject"} <= {
        each["kind"] for each in documents("everything")
    }
