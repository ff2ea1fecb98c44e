"""The machine of instances: every edge that is drawn, and no other."""

import pytest

from retinue.domain.instance import EDGES, ENDED, InstanceRecord, InstanceState, move
from retinue.errors import IllegalTransition

S = InstanceState


@pytest.mark.parametrize("state", S)
@pytest.mark.parametrize("to", S)
def test_a_move_is_an_edge_or_an_error(state: S, to: S) -> None:
    if to in EDGES[state]:
        assert move(state, to) is to
    else:
        with pytest.raises(IllegalTransition, match=f"from {state} to {to}"):
            move(state, to)


def test_the_table_is_the_drawing() -> None:
    assert set(EDGES) == set(S)
    assert {S.STOPPED, S.FAILED} == ENDED
    for state in ENDED:
        assert not EDGES[state]
    for state in set(S) - ENDED:
        assert EDGES[state] >= ENDED
    assert EDGES[S.READY] - ENDED == {S.BUSY, S.PAUSED, S.DRAINING, S.LOST}
    assert EDGES[S.BUSY] - ENDED == {S.READY, S.PAUSED, S.DRAINING, S.LOST}
    assert EDGES[S.DRAINING] - ENDED == {S.LOST}
    assert all(S.STARTING not in to for to in EDGES.values())


def test_a_record_says_when_and_why() -> None:
    made = InstanceRecord(
        instance_id="i",
        owner="o",
        agent_id="a",
        driver="d",
        node="n",
        worker="w",
        execution_id=None,
        attempt=None,
        state=S.STARTING,
        kept=0,
        handle=b'{"pid":7}',
        created_at=1,
    )
    assert made.found() == {"pid": 7}
    made.to(S.READY, 2, "warm")
    made.to(S.READY, 3, "still warm")
    assert (made.state, made.state_at, made.reason, made.ended) == (S.READY, 2, "still warm", False)
    made.to(S.FAILED, 4, "limit_memory")
    assert (made.ended_at, made.reason, made.ended) == (4, "limit_memory", True)
    with pytest.raises(IllegalTransition):
        made.to(S.READY, 5)
