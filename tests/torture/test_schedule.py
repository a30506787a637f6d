"""The plan of faults: the same for the same seed, whole, and never more than a machine can do."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from tests.torture.books import OF_KAFKA, Fault
from tests.torture.schedule import FLAP_BAD_S, FLAP_GOOD_S, Planned, flapping, plan

SUPERVISED, APART, BROKERS = ["api-1", "worker-1"], ["apart-1", "apart-2"], ["broker-1", "broker-2", "broker-3"]


def planned(seed: int, *, able: frozenset[Fault] = frozenset(Fault)) -> list[Planned]:
    return plan(seed, seconds=600, kills=120, supervised=SUPERVISED, apart=APART, able=able, brokers=BROKERS)


def test_one_seed_is_one_plan() -> None:
    assert planned(3) == planned(3) != planned(4)
    assert list(islice(flapping(3), 9)) == list(islice(flapping(3), 9))


def test_ten_minutes_hold_a_hundred_kills_and_every_other_fault() -> None:
    for seed in range(20):
        found = Counter(each.fault for each in planned(seed))
        assert found[Fault.KILL] >= 100
        assert found.keys() == set(Fault)
        assert all(each.at >= 0 and each.at + each.seconds <= 600 for each in planned(seed))


def test_what_a_machine_cannot_do_is_left_out_and_the_rest_is_the_same() -> None:
    able = frozenset(Fault) - {Fault.CUT_DATABASE, Fault.DISK_FULL} - OF_KAFKA
    assert planned(5, able=able) == [each for each in planned(5) if each.fault in able]


def test_the_receiver_flaps_within_its_bounds() -> None:
    for good_s, _, bad_s in islice(flapping(1), 100):
        assert FLAP_GOOD_S[0] <= good_s <= FLAP_GOOD_S[1]
        assert FLAP_BAD_S[0] <= bad_s <= FLAP_BAD_S[1]
