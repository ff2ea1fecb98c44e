"""What follows from the end of an instance, and what a pool has to do: tables and properties."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.domain.supervision import (
    Count,
    Departure,
    Phase,
    Plan,
    PoolPolicy,
    Restart,
    RestartPolicy,
    Stand,
    judge,
    plan,
)

WELL, BADLY = Departure(True, "exited 0"), Departure(False, "exited 1")


@pytest.mark.parametrize(
    ("restart", "departure", "again"),
    [
        (Restart.PERMANENT, WELL, True),
        (Restart.PERMANENT, BADLY, True),
        (Restart.TRANSIENT, WELL, False),
        (Restart.TRANSIENT, BADLY, True),
        (Restart.TEMPORARY, WELL, False),
        (Restart.TEMPORARY, BADLY, False),
    ],
)
def test_what_is_replaced(restart: Restart, departure: Departure, again: bool) -> None:
    verdict = judge(RestartPolicy(restart=restart), (), departure, 100.0, 0.0)
    assert verdict.restart is again
    assert verdict.failed is None
    assert verdict.restarts == ((100.0,) if again else ())


def test_more_than_five_within_a_minute_is_failed_and_older_ones_do_not_count() -> None:
    restarts: tuple[float, ...] = ()
    for n in range(5):
        verdict = judge(RestartPolicy(), restarts, BADLY, 10.0 + n, 0.0)
        assert verdict.restart
        restarts = verdict.restarts
    late = judge(RestartPolicy(), restarts, BADLY, 70.0, 0.0)
    assert late.restart  # the first was a minute ago
    assert len(late.restarts) == 5
    sixth = judge(RestartPolicy(), restarts, BADLY, 69.9, 0.0)
    assert not sixth.restart
    assert sixth.failed == "it ended 6 times within 60 s, the last time: exited 1"


@pytest.mark.parametrize(
    ("recent", "draw", "wait"),
    [(0, 0.0, 0.1), (1, 0.0, 0.2), (3, 0.0, 0.8), (3, 0.5, 0.72), (9, 0.0, 10.0), (999, 0.0, 10.0)],
)
def test_the_pause_doubles_up_to_its_bound_less_the_jitter(
    recent: int, draw: float, wait: float
) -> None:
    assert RestartPolicy().wait(recent, draw) == pytest.approx(wait)


@given(
    ends=st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=40),
    most=st.integers(0, 8),
    within=st.floats(0.1, 200),
    restart=st.sampled_from(Restart),
    draw=st.floats(0, 0.999),
)
def test_never_more_restarts_in_any_window_than_allowed(
    ends: list[tuple[float, bool]], most: int, within: float, restart: Restart, draw: float
) -> None:
    policy = RestartPolicy(restart=restart, most=most, within_seconds=within)
    restarts: tuple[float, ...] = ()
    made: list[float] = []
    now = 0.0
    for after, clean in ends:
        now += after
        verdict = judge(policy, restarts, Departure(clean, "x"), now, draw)
        restarts = verdict.restarts
        if verdict.restart:
            made.append(now)
            assert now < verdict.start_at <= now + policy.most_wait_ms / 1000
        else:
            assert verdict.failed is not None or restart is not Restart.PERMANENT
    for at in made:
        assert sum(1 for other in made if 0 <= other - at < within) <= most


# -- plans ---------------------------------------------------------------------------------------

P = PoolPolicy(least=1, most=3, in_flight=2, idle_seconds=10, lifetime_seconds=100)


def stand(
    name: str,
    phase: Phase = Phase.READY,
    load: int = 0,
    since: float = 0.0,
    idle: float = 0.0,
    stale: bool = False,
) -> Stand:
    return Stand(name, phase, load, since, idle, stale)


NEW, GOING = Phase.STARTING, Phase.DRAINING


@pytest.mark.parametrize(
    ("why", "stands", "more", "wanted"),
    [
        ("warm", [], {}, Plan(1)),
        ("warm already", [stand("a")], {}, Plan(look_in=95)),
        ("it grows", [stand("a", load=2)], {"waiting": 1}, Plan(1, look_in=95)),
        ("as far as needed", [stand("a", load=2)], {"waiting": 3}, Plan(2, look_in=95)),
        ("and allowed", [stand("a", load=2)], {"waiting": 99}, Plan(2, look_in=95)),
        ("what starts counts", [stand("a", load=2), stand("b", NEW)], {"waiting": 2},
         Plan(look_in=95)),
        ("not before its time", [], {"start_at": 7.0}, Plan(look_in=2)),
        ("nor when failed", [], {"failed": True, "start_at": 7.0}, Plan()),
        ("one was lost", [], {"lost": 1}, Plan()),
        ("idle for long", [stand("a", idle=-9), stand("b", idle=-6)], {}, Plan(0, ("a",), 95)),
        ("not long enough", [stand("a"), stand("b", idle=1)], {}, Plan(look_in=5)),
        ("in use", [stand("a", load=1, idle=-9), stand("b", load=2, idle=-9)], {},
         Plan(look_in=95)),
        ("too many", [stand("a", load=2), stand("b", load=1), stand("c"), stand("d")], {},
         Plan(0, ("c",), 5)),
        ("old: another first", [stand("a", since=-95)], {}, Plan(1)),
        ("old: it comes", [stand("a", since=-95), stand("b", NEW)], {}, Plan()),
        ("old: then it goes", [stand("a", since=-95, load=1), stand("b")], {},
         Plan(0, ("a",), 5)),
        ("old: one after another", [stand("a", GOING), stand("b", stale=True), stand("c")], {},
         Plan(look_in=5)),
        ("stale before old", [stand("a", since=-99), stand("b", stale=True)], {},
         Plan(0, ("b",), 5)),
        ("its session is not there", [stand("a"), stand("b"), stand("c", idle=-2)],
         {"waiting": 1, "bound": True}, Plan(0, ("c",), 95)),
        ("nor is there room", [stand(n, load=1) for n in "abc"], {"waiting": 1, "bound": True},
         Plan(look_in=95)),
        ("one more session", [stand("a", load=1)], {"waiting": 1, "bound": True},
         Plan(1, look_in=95)),
    ],
)  # fmt: skip
def test_what_a_pool_has_to_do(
    why: str, stands: list[Stand], more: dict[str, object], wanted: Plan
) -> None:
    assert plan(P, stands, 5.0, **more) == wanted, why  # type: ignore[arg-type]


STANDS = st.lists(
    st.builds(
        Stand,
        st.uuids().map(str),
        st.sampled_from(Phase),
        st.integers(0, 3),
        st.floats(-1000, 0),
        st.floats(-1000, 0),
        st.booleans(),
    ),
    max_size=12,
)
POLICIES = st.builds(
    lambda least, more, in_flight, lifetime: PoolPolicy(
        least=least, most=least + more, in_flight=in_flight, lifetime_seconds=lifetime
    ),
    *(st.integers(0, 4), st.integers(0, 4), st.integers(1, 5)),
    st.none() | st.floats(1, 2000),
)


@given(policy=POLICIES, stands=STANDS, waiting=st.integers(0, 50), bound=st.booleans())
def test_a_plan_keeps_its_bounds(
    policy: PoolPolicy, stands: list[Stand], waiting: int, bound: bool
) -> None:
    todo = plan(policy, stands, 0.0, waiting=waiting, bound=bound)
    live = [s for s in stands if s.phase is not Phase.DRAINING]
    after = len(live) - len(todo.drain) + todo.start
    assert not (todo.start and todo.drain)
    assert set(todo.drain) <= {s.name for s in live if s.phase is Phase.READY}
    if todo.start:  # one more than the most, while an old one is replaced
        assert after <= policy.most + 1
    if todo.drain:
        assert after >= min(policy.least, len(live) - 1)
    assert todo.look_in is None or 0 < todo.look_in < math.inf
    idle = not waiting and not any(s.in_flight for s in live)
    if len(live) < policy.least and idle:
        assert after == policy.least


@given(policy=POLICIES, load=st.integers(0, 60))
def test_doing_what_is_planned_comes_to_rest_within_the_bounds(
    policy: PoolPolicy, load: int
) -> None:
    """Follow the plans: every start succeeds at once, work is dealt out, nothing ends."""
    stands: list[Stand] = []
    now = 0.0
    for step in range(100):
        free = len(stands) * policy.in_flight
        held = min(load, free)
        stands = [
            Stand(s.name, Phase.READY, min(policy.in_flight, max(held - i * policy.in_flight, 0)),
                  s.since, s.idle_since)
            for i, s in enumerate(stands)
        ]  # fmt: skip
        todo = plan(policy, stands, now, waiting=load - held)
        if not todo.start and not todo.drain:
            break
        stands = [s for s in stands if s.name not in todo.drain]
        stands += [Stand(f"{step}.{n}", Phase.READY, 0, now, now) for n in range(todo.start)]
    else:
        raise AssertionError("it never comes to rest")
    assert policy.least <= len(stands) <= policy.most
    if len(stands) < policy.most:
        assert load <= len(stands) * policy.in_flight


@given(count=st.integers(1, 6))
def test_a_renewal_replaces_each_once_and_never_has_fewer(count: int) -> None:
    policy = PoolPolicy(least=count, most=count, in_flight=1, lifetime_seconds=None)
    stands = [Stand(str(n), Phase.READY, 0, 0.0, 0.0, True) for n in range(count)]
    started = 0
    for _ in range(count * 4):
        todo = plan(policy, stands, 1.0)
        started += todo.start
        stands = [s for s in stands if s.name not in todo.drain]
        stands += [Stand(f"new{started}", Phase.READY, 0, 1.0, 1.0)] * todo.start
        assert count <= len(stands) <= count + 1
    assert started == count
    assert not any(s.stale for s in stands)


@given(st.lists(st.tuples(st.integers(0, 10_000), st.booleans())))
def test_the_metrics_equal_a_recount(ended: list[tuple[int, bool]]) -> None:
    count = Count()
    for ms, failed in ended:
        count.add(ms / 1000, failed=failed)
    assert count.requests == len(ended)
    assert count.errors == sum(failed for _, failed in ended)
    average = sum(ms for ms, _ in ended) / len(ended) if ended else 0.0
    assert count.average_ms == pytest.approx(average, abs=0.01)
