"""One scenario of tests/e2e with the journal in Kafka. All of them: `make kafka`."""

import pytest

from tests.e2e.harness import BROKERS
from tests.e2e.test_moves import test_an_ordered_endpoint_keeps_its_order_over_spreads_pools_and_a_drained_shard  # noqa: F401
from tests.kafka.cluster import Cluster

pytestmark = [pytest.mark.kafka, pytest.mark.process]


@pytest.fixture(autouse=True)
def brokers_for_the_harness(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every server that a scenario starts has its journal there."""
    monkeypatch.setenv(BROKERS, f"kafka://{cluster.servers}")
