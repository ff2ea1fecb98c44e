"""The clock that stored times come from: it follows the system's, and never jumps."""

import time

import pytest

from retinue.domain import ids


def test_it_tells_the_time() -> None:
    assert abs(ids.now_us() - time.time_ns() // 1000) < 1_000_000


@pytest.mark.parametrize("seconds", [7200, -7200, 1, -1])
def test_a_clock_that_is_set_is_followed_slowly(
    monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    monkeypatch.setattr(ids._clock, "offset", ids._clock.offset)
    real = time.time_ns
    before = ids.now_us()
    monkeypatch.setattr(time, "time_ns", lambda: real() + seconds * 10**9)
    assert abs(ids.follow_clock() - seconds) < 1
    moved = ids.now_us() - before
    assert abs(moved) < 500_000
    for _ in range(300):
        ids.follow_clock()
    # A second is made up for in a few minutes; of two hours hardly anything is.
    left = (time.time_ns() // 1000 - ids.now_us()) / 1_000_000
    assert abs(left) < 0.05 if abs(seconds) == 1 else abs(left - seconds) < 5


def test_ids_increase_whatever_the_clock_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids._clock, "offset", ids._clock.offset)
    made = [ids.ulid()]
    for jump in (7200, -7200, 0):
        real = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda j=jump, r=real: r() + j * 10**9)
        ids.follow_clock()
        made += [ids.ulid() for _ in range(100)]
    assert made == sorted(set(made))
