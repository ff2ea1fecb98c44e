"""When the keeper ends an agent for what it uses."""

import pytest

from retinue.keeper.agent import CPU_SECONDS, SAMPLE_SECONDS, Agent
from retinue.keeper.tree import Usage


def judged(percents: list[float], limit: float) -> float | None:
    """Return after how many seconds one that uses so much CPU, sample by sample, is ended."""
    agent = Agent("a", 1, 1, {"limits": {"cpu_percent": limit}}, 0.0)
    now = cpu = 0.0
    for percent in percents:
        now += SAMPLE_SECONDS
        cpu += percent / 100 * SAMPLE_SECONDS
        agent.judge(Usage(cpu, 0, 1), now)
        if agent.ending:
            assert agent.reason == "limit_cpu"
            return now
        assert agent.due == now + SAMPLE_SECONDS
    return None


@pytest.mark.requirement("001.limits")
def test_one_that_is_over_its_cpu_limit_for_ten_seconds_on_end_is_ended() -> None:
    ended = judged([100.0] * 60, limit=50)
    assert ended is not None
    assert CPU_SECONDS <= ended <= CPU_SECONDS + 2 * SAMPLE_SECONDS
    assert judged([49.0] * 100, limit=50) is None
    assert judged(([100.0] * 18 + [10.0]) * 5, limit=50) is None


def test_one_without_limits_is_never_looked_at() -> None:
    assert Agent("a", 1, 1, {}, 0.0).due is None
