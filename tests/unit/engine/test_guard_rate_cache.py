"""The rate bucket and the cache: decisions on times and bytes that the caller gives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.domain.policy import RatePolicy
from retinue.engine.guard import Bucket, Cache, Callers, cache_key


def test_a_bucket_lets_its_burst_pass_and_then_one_at_a_time() -> None:
    bucket = Bucket(RatePolicy(per_minute=60, burst=3))
    assert bucket.free(100.0) == 3
    bucket.take(100.0, 3)
    assert bucket.wait(100.0) == pytest.approx(1.0)
    assert bucket.wait(100.75) == pytest.approx(0.25)
    assert bucket.wait(101.0) == 0
    bucket.take(101.0)
    assert bucket.wait(101.0) == pytest.approx(1.0)
    bucket.give()
    assert bucket.wait(101.0) == 0


def test_a_clock_that_goes_back_fills_nothing() -> None:
    bucket = Bucket(RatePolicy(per_minute=60, burst=1))
    bucket.take(100.0)
    assert bucket.wait(50.0) == pytest.approx(1.0)
    assert bucket.wait(100.5) == pytest.approx(0.5)


@given(
    st.lists(st.floats(0, 5), min_size=1, max_size=200),
    st.integers(1, 600),
    st.integers(1, 20),
)
def test_a_bucket_never_lets_more_pass_than_it_may(
    gaps: list[float], per_minute: int, burst: int
) -> None:
    bucket = Bucket(RatePolicy(per_minute=per_minute, burst=burst))
    now = passed = 0.0
    for gap in gaps:
        now += gap
        count = bucket.free(now)
        bucket.take(now, count)
        passed += count
        assert passed <= burst + now * per_minute / 60 + 1e-6


def test_callers_have_a_bucket_each_and_are_forgotten_when_idle() -> None:
    callers = Callers(RatePolicy(per_minute=60, burst=1), most=2)
    assert callers.admit("a", "x", 0.0) == 0
    assert callers.admit("a", "x", 0.0) == pytest.approx(1.0)
    assert callers.admit("b", "x", 0.0) == 0
    assert callers.admit("c", "x", 0.5) == 0  # nobody is idle yet: all are kept
    assert callers.admit("a", "x", 0.5) == pytest.approx(0.5)
    assert callers.admit("d", "x", 9.0) == 0
    assert len(callers._buckets) == 1
    assert Callers(None).admit("a", "x", 0.0) == 0


def test_a_result_is_fresh_for_its_time_and_room_is_bounded() -> None:
    cache = Cache(most_bytes=1000)
    cache.put(b"1", b"x" * 200, 0.0, 10.0)
    assert cache.get(b"1", 9.9) == b"x" * 200
    assert cache.get(b"1", 10.0) is None
    assert cache.size == 0
    cache.put(b"1", b"a", 0.0, 10.0)
    cache.put(b"2", b"b" * 200, 0.0, 10.0)
    assert cache.get(b"1", 1.0) == b"a"
    cache.put(b"3", b"c" * 200, 0.0, 10.0)
    assert (cache.get(b"2", 1.0), cache.get(b"1", 1.0)) == (None, b"a")
    cache.put(b"4", b"d" * 2000, 0.0, 10.0)
    assert cache.get(b"4", 0.0) is None
    assert cache.size <= 1000


def test_the_key_is_the_owners_and_the_versions_and_knows_no_order() -> None:
    one = cache_key("ann", "a", "1", ["cap", {"x": 1, "y": [1, 2]}, None])
    assert one == cache_key("ann", "a", "1", ["cap", {"y": [1, 2], "x": 1}, None])
    assert one != cache_key("bob", "a", "1", ["cap", {"x": 1, "y": [1, 2]}, None])
    assert one != cache_key("ann", "a", "2", ["cap", {"x": 1, "y": [1, 2]}, None])
    assert one != cache_key("ann", "a", "1", ["cap", {"x": 1, "y": [2, 1]}, None])
