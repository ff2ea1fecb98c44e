"""Ids, strict JSON, the state machine, events on the wire, the contract chain."""

import subprocess
import sys
import threading
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.domain.contract import (
    ContractStatus,
    ContractType,
    Draft,
    Head,
    append,
    chain_hash,
    status_of,
)
from retinue.domain.event import Event, EventType
from retinue.domain.execution import EDGES, TERMINAL, State, advance
from retinue.domain.ids import is_ulid, iso, now_us, ulid
from retinue.domain.policy import Delivery, RetryPolicy, rank_of, repeatable
from retinue.domain.principal import Role
from retinue.domain.session import check_session_id
from retinue.domain.strictjson import MAX_DEPTH, NotJson, TooMuch, check, decode, encode
from retinue.errors import ExecutionError, IllegalTransition, InvalidInput, RetinueError, error_from


def test_ulids_are_unique_and_increase_across_threads() -> None:
    made: list[list[str]] = []

    def make() -> None:
        made.append([ulid() for _ in range(20_000)])

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({i for ids in made for i in ids}) == 80_000
    assert all(ids == sorted(ids) for ids in made)
    assert all(is_ulid(ids[0]) for ids in made)


def test_a_ulid_says_when_it_was_made() -> None:
    alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    before = now_us() // 1000
    made = ulid()
    value = 0
    for character in made[:10]:
        value = value * 32 + alphabet.index(character)
    assert before - 1 <= value <= now_us() // 1000
    assert not is_ulid("8" + made[1:])
    assert not is_ulid(made[:25] + "U")
    assert not is_ulid(made + "\n")


def test_times_are_utc() -> None:
    assert iso(1_795_000_000_000_000).endswith("Z")
    assert iso(0) == "1970-01-01T00:00:00Z"


def test_a_forked_child_makes_ids_of_its_own() -> None:
    script = (
        "import os\n"
        "from retinue.domain import ids\n"
        "ids.ulid()\n"
        "parent = os.getpid()\n"
        "os.fork()\n"
        "ids.now_us = lambda: 9 * 10**15\n"
        "os.write(1, ids.ulid().encode() + b'\\n')\n"
        "if os.getpid() == parent: os.wait()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    first, second = done.stdout.split()
    assert first != second


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"{", "not valid JSON"),
        (b"", "the body is empty"),
        (b"NaN", "not valid JSON"),
        (b'{"a": NaN}', "not valid JSON"),
        (b"1e999", "not valid JSON"),
        (b'"\xff"', "not valid JSON"),
        (b'"\\ud800"', "lone surrogate"),
        (b'{"a": ["x\\u0000y"]}', r"$.a[]"),
        (b'{"a\\u0000": 1}', "NUL"),
        (b"1" * 5000, "not valid JSON"),
        (b"1" * 1001, "digits"),
        (b"[" * 100_000, "nested"),
        (b"[" * (MAX_DEPTH + 2) + b"]" * (MAX_DEPTH + 2), "nested"),
        (b'{"a": 1} x', "not valid JSON"),
    ],
)
def test_bad_json_is_refused_saying_what_and_where(raw: bytes, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode(raw)
    assert says in caught.value.message


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), "a\0", "\ud800", {1: 2}, {1, 2}, b"x", object(), 10**1000],
)
def test_what_is_not_json_is_not_encoded(value: Any) -> None:
    with pytest.raises(NotJson):
        encode({"deep": [value]})


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(
                st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=8
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(json_values)
def test_everything_that_is_json_comes_back_equal(value: Any) -> None:
    assert decode(encode(value)) == value


def test_a_size_limit_is_found_before_encoding() -> None:
    with pytest.raises(TooMuch):
        check(["x" * 1000] * 1000, limit=10_000)
    with pytest.raises(TooMuch):
        encode('"' * 90, limit=100)  # larger once escaped
    assert encode("x" * 98, limit=100)


def test_every_edge_of_the_machine_and_no_other() -> None:
    for state in State:
        for to in State:
            if to in EDGES[state]:
                assert advance(state, to) is to
            else:
                with pytest.raises(IllegalTransition):
                    advance(state, to)
    assert all(not EDGES[state] for state in TERMINAL)
    assert set(EDGES) == set(State)


def test_states_seen_as_contract_status() -> None:
    assert {state: status_of(state).value for state in State} == {
        State.SCHEDULED: "pending",
        State.QUEUED: "pending",
        State.RUNNING: "in_progress",
        State.INPUT_REQUIRED: "in_progress",
        State.COMPLETED: "completed",
        State.FAILED: "failed",
        State.TIMED_OUT: "failed",
        State.CANCELLED: "cancelled",
    }


@pytest.mark.parametrize("session_id", ["a", "session_001", "A-z.0:9", "x" * 64])
def test_good_session_ids(session_id: str) -> None:
    assert check_session_id(session_id) == session_id


@pytest.mark.requirement("003.safe-session")
@pytest.mark.parametrize(
    "session_id", ["", ".", "..", "../../x", "a/b", "a\0", "%2e%2e/", "x" * 65, "a b", "é", "a\n"]
)
def test_bad_session_ids(session_id: str) -> None:
    with pytest.raises(InvalidInput):
        check_session_id(session_id)


@pytest.mark.parametrize(
    ("delivery", "outcome", "repeats"),
    [
        (Delivery.AT_MOST_ONCE, "not_started", True),
        (Delivery.AT_MOST_ONCE, "failed", False),
        (Delivery.AT_MOST_ONCE, "unknown", False),
        (Delivery.AT_LEAST_ONCE, "unknown", True),
        (Delivery.IDEMPOTENT, "failed", True),
    ],
)
def test_what_may_be_repeated(delivery: Delivery, outcome: Any, repeats: bool) -> None:
    policy = RetryPolicy()
    asked = {"kind": "internal", "outcome": outcome}
    assert repeatable(delivery, policy, **asked) is repeats
    assert not repeatable(delivery, policy, kind="validation", outcome=outcome)


def test_waiting_makes_up_for_a_low_priority() -> None:
    minute = 60_000_000
    ranks = {p: rank_of(1_000 * minute, p, minute) for p in (-2, 0, 5)}
    assert ranks[5] < ranks[0] < ranks[-2]
    assert rank_of(1_001 * minute, 0, minute) < ranks[-2] < rank_of(1_003 * minute, 0, minute)
    assert rank_of(1_000 * minute, 5, 0) == rank_of(1_000 * minute, 0, 0)


def test_events_on_the_wire() -> None:
    event = Event("01X", 7, EventType.CONTENT_CHUNK, 1_795_000_000_000_000, b'{"content":"a"}')
    assert msgspec.json.decode(event.wire) == {
        "executionId": "01X",
        "eventType": "content_chunk",
        "sequence": 7,
        "timestamp": iso(event.at),
        "content": "a",
    }
    bare = msgspec.structs.replace(event, type=EventType.COMPLETED, data=b"{}")
    assert msgspec.json.decode(bare.wire)["eventType"] == "completed"
    assert bare.terminal
    assert not event.terminal


def draft(n: int) -> Draft:
    return Draft(
        id=ulid(),
        type=ContractType.RESPONSE,
        from_agent="a",
        to_agent="b",
        capability=None,
        status=ContractStatus.COMPLETED,
        execution_id=None,
        body=b"%d" % n,
    )


def test_every_field_of_a_contract_is_in_its_hash() -> None:
    head = Head()
    rows = [append(head, draft(n), owner="o", session_id="s", at=n) for n in range(3)]
    assert [row.n for row in rows] == [1, 2, 3]
    assert head.hash == rows[-1].hash
    row = rows[1]
    assert chain_hash(rows[0].hash, row) == row.hash
    others: dict[str, Any] = {
        "owner": "x",
        "session_id": "x",
        "n": 9,
        "id": "x",
        "type": ContractType.REQUEST,
        "from_agent": "x",
        "to_agent": "x",
        "capability": "x",
        "status": ContractStatus.FAILED,
        "execution_id": "x",
        "at": 9,
        "body_hash": bytes(32),
        "digest": bytes(32),
    }
    for field, value in others.items():
        changed = msgspec.structs.replace(row, **{field: value})
        assert chain_hash(rows[0].hash, changed) != row.hash, field
    assert chain_hash(rows[1].hash, row) != row.hash
    assert set(others) | {"body", "hash"} == set(row.__struct_fields__)


def test_roles_cover_what_is_below_them() -> None:
    assert Role.ADMIN.covers(Role.OPERATOR)
    assert Role.OPERATOR.covers(Role.VIEWER)
    assert not Role.VIEWER.covers(Role.OPERATOR)


def _all(root: type[RetinueError]) -> list[type[RetinueError]]:
    # Those of the tree: a module may make one more exact for itself.
    children = [c for c in root.__subclasses__() if c.__module__ == root.__module__]
    return [root, *(e for child in children for e in _all(child))]


def test_every_error_has_a_sentence_and_survives_the_wire() -> None:
    for kind in _all(RetinueError):
        error = kind(details={"a": 1})
        assert error.message.endswith((".", "."))
        assert " " in error.message
        back = error_from(error.as_dict())
        assert back.as_dict() == error.as_dict()
    assert isinstance(error_from({"code": "E_WHO_KNOWS"}), ExecutionError)
