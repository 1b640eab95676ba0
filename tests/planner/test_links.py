import math

import pytest

from federated_dask.errors import ConfigurationError
from federated_dask.planner.links import ALIKE, FAST, LARGEST_RATIO, LinkCosts

MIB = 2**20


@pytest.mark.parametrize(
    ("pair", "cost"),
    [("north", 2.0), (("north",), 2.0), (("north", 1), 2.0), (("north", "home"), 0)]
    + [(("north", "home"), cost) for cost in (-1.0, math.inf, math.nan, "2")],
)
def test_costs_that_are_none_are_refused(pair: object, cost: object) -> None:
    with pytest.raises(ConfigurationError, match="link_costs"):
        LinkCosts({pair: cost})


def test_links_that_differ_little_count_alike() -> None:
    costs = LinkCosts()
    costs.measure("north", "home", 100 * MIB, 10.0)
    costs.measure("south", "home", 100 * MIB, 9.0 * ALIKE)
    assert costs.of("south", "home") == costs.of("north", "home") == 1.0
    costs.measure("ocean", "home", 100 * MIB, 40.0)
    assert costs.of("ocean", "home") == pytest.approx(4.0)
    assert costs.of("home", "ocean") == costs.of("ocean", "home")


def test_a_very_slow_link_is_not_beyond_measure() -> None:
    costs = LinkCosts()
    costs.measure("north", "home", 100 * MIB, 100 * MIB / FAST)
    costs.measure("south", "home", 100 * MIB, 1e6)
    assert costs.of("south", "home") == LARGEST_RATIO


def test_little_says_nothing_and_what_is_given_counts_first() -> None:
    costs = LinkCosts({("ocean", "home"): 7.0})
    costs.measure("north", "home", 100 * MIB, 1.0)
    costs.measure("south", "home", MIB, 100.0)
    costs.measure("ocean", "home", 100 * MIB, 1e4)
    assert costs.of("south", "home") == 1.0
    assert costs.of("ocean", "home") == 7.0
