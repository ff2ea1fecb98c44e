"""The latency budget: what took longer than its most is a breach, by a clock that the test sets."""

import pytest

from retinue.domain.latency import BUDGET, Meter, Operation


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


MOST = {
    Operation.STARTUP: 10,
    Operation.INVOKE: 30,
    Operation.LLM_INVOKE: 60,
    Operation.CHUNK: 0.5,
    Operation.DATASET_ADD: 1,
    Operation.HEALTH: 1,
}
TARGETS = (5, 2, 10, 0.1, 0.05, 0.1)


def test_the_budget_is_the_specifications() -> None:
    assert {name: allowed.most_ms / 1000 for name, allowed in BUDGET.items()} == MOST
    assert tuple(allowed.target_ms / 1000 for allowed in BUDGET.values()) == TARGETS


@pytest.mark.requirement("000.latency")
@pytest.mark.parametrize("operation", list(Operation))
def test_longer_than_its_most_is_a_breach_and_just_that_long_is_none(operation: Operation) -> None:
    clock = Clock()
    meter = Meter(clock)
    for seconds in (0.25, MOST[operation], MOST[operation] + 0.125, MOST[operation] * 3):
        begun = clock()
        clock.now += seconds
        assert meter.since(operation, begun) == seconds
    (view,) = meter.views()
    assert (view.operation, view.count, view.breaches) == (operation, 4, 2)
    assert view.longest_ms == MOST[operation] * 3000
    assert view.average_ms == (0.375 + MOST[operation] * 5) * 1000 / 4
    assert meter.breaches == 2


def test_what_was_not_measured_is_not_shown() -> None:
    meter = Meter()
    assert (meter.views(), meter.breaches) == ([], 0)
    meter.add(Operation.HEALTH, 2)
    meter.add(Operation.STARTUP, 1)
    shown = [(view.operation.value, view.breaches) for view in meter.views()]
    assert shown == [("startup", 0), ("health_check", 1)]
    assert meter.breaches == 1
