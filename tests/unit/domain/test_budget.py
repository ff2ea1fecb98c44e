"""Budgets: spending counts here and above, and the first limit that is passed is named."""

import msgspec
import pytest

from retinue.domain.budget import Budget, Limit, Usage, tightest


def test_the_first_limit_that_is_passed_is_named() -> None:
    budget = Budget(Limit(max_tokens=10, max_cost_usd=0.5))
    assert budget.charge(Usage(input_tokens=6, output_tokens=4)) is None
    assert budget.refuses(Usage(output_tokens=1)) == "max_tokens 10"
    assert budget.refuses(Usage(cost_usd=0.5)) is None
    assert budget.charge(Usage(cost_usd=0.6)) == "max_cost_usd 0.5"
    assert budget.left() == Limit(max_tokens=0, max_cost_usd=0.0)


def test_a_child_spends_what_its_parent_may() -> None:
    parent = Budget(Limit(max_cost_usd=1.0))
    one, two = Budget(None, parent=parent), Budget(Limit(max_cost_usd=0.3), parent=parent)
    assert one.charge(Usage(cost_usd=0.8)) is None
    assert two.left().max_cost_usd == pytest.approx(0.2)
    assert two.refuses(Usage(cost_usd=0.25)) == "max_cost_usd 1"
    assert two.charge(Usage(cost_usd=0.25)) == "max_cost_usd 1"
    assert parent.spent.cost_usd == pytest.approx(1.05)


def test_adding_up_cents_does_not_pass_a_limit() -> None:
    budget = Budget(Limit(max_cost_usd=0.3))
    assert [budget.charge(Usage(cost_usd=0.1)) for _ in range(3)] == [None] * 3


def test_the_tighter_of_two_limits() -> None:
    one, other = Limit(max_tokens=5), Limit(max_tokens=9, max_cost_usd=1.0)
    assert tightest(one, other) == Limit(max_tokens=5, max_cost_usd=1.0)


@pytest.mark.parametrize("data", [{"input_tokens": -1}, {"cost_usd": -0.1}, {"cost_usd": "1"}])
def test_nobody_is_given_anything_back(data: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(data, Usage)
