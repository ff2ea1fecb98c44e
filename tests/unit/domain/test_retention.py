"""What retention may cut, decided without a store."""

import pytest

from retinue.domain.ids import ulid, ulid_after
from retinue.domain.retention import Bounds, Link, cut_at

OLD = Bounds(before=100)


def asked(n: int, answered: int | None, *, at: int = 50, removed: bool = True) -> Link:
    state = "completed" if answered is not None else "running"
    ended = at if answered is not None else None
    return Link(n, f"c{n}", "REQUEST", None, at, b"", f"e{n}", state, ended, answered, removed)


def told(n: int) -> Link:
    return Link(n, f"c{n}", "RESPONSE", "completed", 60, b"", "e", "completed", 60, n, True)


def refused(n: int, at: int = 50) -> list[Link]:
    return [
        Link(n, f"c{n}", "REQUEST", None, at, b"", None, None, None, None, False),
        Link(n + 1, f"c{n}", "RESPONSE", "failed", at, b"", None, None, None, None, False),
    ]


PAIRS = [asked(1, 2), told(2), asked(3, 4), told(4)]


@pytest.mark.parametrize(
    ("links", "needed", "count"),
    [
        (PAIRS, None, 4),
        (PAIRS, 5, 4),
        (PAIRS, 4, 2),
        (PAIRS, 3, 2),
        (PAIRS, 2, 0),
        ([], None, 0),
        ([asked(1, None)], None, 0),
        ([asked(1, 3), asked(2, None), told(3)], None, 0),
        ([asked(1, 3), asked(2, 4), told(3), told(4)], None, 4),
        ([asked(1, 3), asked(2, 4), told(3)], None, 0),
        ([asked(1, 2), told(2), asked(3, 5), asked(4, 6), told(5)], None, 2),
        ([asked(1, 2, at=100), told(2)], None, 0),
        ([asked(1, 2, removed=False), told(2)], None, 0),
        ([*refused(1), *refused(3)], None, 4),
        ([*refused(1), *refused(3, at=100)], None, 2),
        (refused(1)[:1], None, 0),
    ],
)
def test_a_cut_takes_whole_old_exchanges(links: list[Link], needed: int | None, count: int) -> None:
    assert cut_at(links, OLD, needed) == count


def test_what_is_old_ended_before_or_has_a_lower_id() -> None:
    assert OLD.old(99, "x")
    assert not OLD.old(100, "x")
    assert Bounds(below="b").old(1 << 60, "a")
    assert not Bounds(below="b").old(0, "b")
    assert Bounds().none
    assert not Bounds().old(0, "")


def test_an_id_after_a_time_follows_every_id_of_it() -> None:
    at = 1_700_000_000_123_456
    assert len(ulid_after(at)) == 26
    assert ulid_after(at - 1000) < ulid_after(at) < ulid_after(at + 1000)
    assert ulid_after(0) < ulid() < ulid_after(1 << 52)
