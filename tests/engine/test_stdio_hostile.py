"""Workers that flood, ask wrongly and never read: they harm themselves, and nobody else."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.engine.test_stdio import ANSWER, PROGRAM, started  # noqa: F401 the fixture
from tests.process.rig import until

from retinue.domain.instance import InstanceState
from retinue.drivers.stdio.owed import MOST_OWED
from retinue.interfaces import InstanceFilter, Page

HOSTILE = (sys.executable, "-I", "-S", "-u", str(Path(__file__).with_name("hostile.py")))
REQUEST = '{"type":"request","message_id":"%s","correlation_id":"$ID","payload":%s}\n'
CALL = '{"operation":"agent.invoke","agent_name":"other","input":{"n":1}%s}'


async def ended(rig: Any) -> Any:
    """Return the record of the process that was ended, once that is in the store."""
    over = {InstanceState.STOPPED, InstanceState.FAILED}
    while True:
        found = await rig.system.store.instances(InstanceFilter(), Page())
        gone = [record for record in found.items if record.state in over]
        if gone:
            return gone[0]
        await asyncio.sleep(0.02)


# -- floods --------------------------------------------------------------------------------------


@pytest.mark.requirement("000.bad-frames")
async def test_rubbish_without_end_leaves_others_their_turn(started: Any) -> None:  # noqa: F811
    rig = await started(command=HOSTILE, max_bad_lines=10**9, process_pool_size=2)
    flooding = asyncio.create_task(rig.ask("flood", line="y\n"))
    counts = [m.instance.pipe.reader.counts for m in rig.pool.members.values()]
    most = last = 0
    while last < 100_000:
        await asyncio.sleep(0)
        now = sum(count["not_json"] for count in counts)
        most, last = max(most, now - last), now
    assert most < 16_384  # a piece of a pipe holds twice as many
    results = await asyncio.gather(*(rig.result(n=n) for n in range(3)))
    assert [one["n"] for one in results] == [0, 1, 2]
    flooding.cancel()
    shown = [sum(view.bad_frames.values()) for view in rig.view.instances]
    assert max(shown) >= 100_000
    assert "more like these are counted and not shown" in await rig.log("stdout")
    assert (await rig.log("stdout")).count("bad frame") < 5_000


@pytest.mark.requirement("000.bad-frames")
async def test_who_writes_nothing_but_rubbish_is_ended_and_told_why(
    started: Any,  # noqa: F811
) -> None:
    rig = await started(command=HOSTILE, max_bad_lines=100)
    lines = ["no frame\n"] * 100 + [REQUEST % ("a", '{"operation":"x"}'), "no frame\n"]
    await rig.result("ask", lines=lines, ids=["a"])  # not in a row
    reply = await rig.ask("flood", line="no frame\n")
    why = "it wrote more than 100 lines in a row that are no frames (max_bad_lines)"
    assert reply.error["code"] == "E_STREAM_BROKEN"
    assert reply.error["message"] == f"the worker was ended: {why}"
    assert (await ended(rig)).reason == why
    await rig.result()
    assert rig.view.restarts == 1


@pytest.mark.requirement("000.health")
@pytest.mark.parametrize("inside", [True, False])
async def test_who_only_asks_and_never_reads_waits_in_its_write_and_is_replaced(
    started: Any,  # noqa: F811
    inside: bool,
) -> None:
    rig = await started(command=HOSTILE, health_interval=0.2, health_timeout=1)
    (member,) = rig.pool.members.values()
    pipe, stdout = member.instance.pipe, member.instance.child.stdout
    asked = asyncio.create_task(rig.ask("only_ask", inside=inside))
    await until(lambda: pipe.owed.too_much)
    read, most = stdout.counts.bytes, 0
    while not asked.done():
        most = max(most, pipe.owed.size)
        await asyncio.sleep(0.01)
    assert most < MOST_OWED + (1 << 20)
    # Nothing more is taken than what is read ahead and what the pipe holds.
    assert stdout.counts.bytes - read < 8 << 20
    why = "no answer to a ping within 1 s"
    assert (await asked).error["message"] == f"the worker was ended: {why}"
    assert (await ended(rig)).reason == why
    await rig.result()
    assert rig.view.restarts == 1


async def test_who_closes_its_input_and_asks_on_is_replaced(started: Any) -> None:  # noqa: F811
    rig = await started(command=HOSTILE, health_interval=0.2, health_timeout=60)
    reply = await rig.ask("only_ask", inside=True, close=True)
    assert reply.error["code"] == "E_STREAM_BROKEN"
    await rig.result()


async def test_it_may_have_so_many_requests_in_progress(
    started: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("retinue.drivers.stdio.calls.MOST_CALLS", 2)
    rig = await started(command=HOSTILE)
    given = {"do": "count", "file": str(tmp_path / "ran"), "go": str(tmp_path / "go")}
    call = CALL.replace('{"n":1}', json.dumps(given)) % ""
    ids = [str(n) for n in range(3)]
    asked = rig.ask("ask", lines=[REQUEST % (one, call) for one in ids], ids=["2"])
    (refused,) = json.loads((await asked).data)[0]
    assert refused["payload"]["error_code"] == "E_QUEUE_FULL"
    assert refused["payload"]["outcome"] == "not_started"


# -- frames that are wrong -----------------------------------------------------------------------


@pytest.mark.requirement("000.bad-frames")
@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("invalid_frame", '{"type":"stream","correlation_id":"$ID","payload":{"chunk":5}}'),
        ("invalid_frame", '{"type":"stream","correlation_id":"$ID","timestamp":5,"payload":{}}'),
        ("invalid_frame", '{"type":"control","correlation_id":"$ID","payload":[]}'),
        ("invalid_frame", '{"type":"stream","message_id":"","correlation_id":"$ID","payload":{}}'),
        ("unknown_type", '{"type":"gossip","correlation_id":"$ID","payload":{}}'),
        ("unknown_type", '{"correlation_id":"$ID","payload":{}}'),
        ("not_json", '{"type":"stream","correlation_id":"$ID","payload":{"chunk":}}'),
        ("nan", '{"type":"control","correlation_id":"$ID","payload":{"a":NaN}}'),
    ],
)
async def test_what_is_no_answer_does_not_end_what_it_is_about(
    started: Any,  # noqa: F811
    kind: str,
    line: str,
) -> None:
    rig = await started()
    result = await rig.result("lines", lines=[line + "\n"])
    assert result["input"]["do"] == "lines"
    assert rig.view.instances[0].bad_frames == {kind: 1}
    assert f"bad frame ({kind})" in await rig.log("stdout")


@pytest.mark.requirement("000.errors")
@pytest.mark.parametrize(
    ("payload", "shape", "code"),
    [
        ('{"operation":"agent.invoke","operation":"agent.invoke"}', REQUEST, "E_INVALID_INPUT"),
        ('{"operation":"agent.invoke","input":"\\u0000"}', REQUEST, "E_INVALID_INPUT"),
        ('{"operation":"agent.invoke","input":"$X"}', REQUEST, "E_TOO_LARGE"),
        ("5", REQUEST, "E_INVALID_INPUT"),
        (CALL % "", '{"protocol_version":"2.0",' + REQUEST[1:], "E_INVALID_INPUT"),
        (CALL % ',"options":{"timeout_ms":1e308}', REQUEST, "E_INVALID_INPUT"),
        (CALL % ',"options":{"timeout_ms":-5}', REQUEST, "E_INVALID_INPUT"),
        (CALL % ',"options":5', REQUEST, "E_INVALID_INPUT"),
        ('{"operation":"agent.invoke","agent_name":"$X"}', REQUEST, "E_AGENT_NOT_FOUND"),
        ('{"operation":"$X"}', REQUEST, "E_UNKNOWN_OPERATION"),
        ("{}", REQUEST, "E_INVALID_INPUT"),
        (CALL % "", REQUEST.replace("$ID", "nobody"), "E_INVALID_INPUT"),
    ],
)
async def test_a_request_that_is_wrong_is_answered_and_ends_nothing(
    started: Any,  # noqa: F811
    payload: str,
    shape: str,
    code: str,
) -> None:
    rig = await started(command=HOSTILE)
    size = 2_000_000 if code == "E_TOO_LARGE" else 900_000
    ((answer,),) = await rig.result("ask", lines=[shape % ("q", payload)], ids=["q"], x=size)
    assert (answer["type"], answer["payload"]["error_code"]) == ("error", code)
    assert answer["payload"]["outcome"] == "not_started"


@pytest.mark.requirement("000.bad-frames")
async def test_a_message_id_in_use_is_refused_and_the_request_runs_once(
    started: Any,  # noqa: F811
    tmp_path: Path,
) -> None:
    rig = await started(command=HOSTILE)
    ran, go = tmp_path / "ran", tmp_path / "go"
    given = {"do": "count", "file": str(ran), "go": str(go)}
    line = REQUEST % ("q", CALL.replace('{"n":1}', json.dumps(given)) % "")
    asked = asyncio.create_task(rig.result("ask", lines=[line] * 2, ids=["q"], file=str(go)))
    await until(ran.exists)
    go.touch()
    (first, *rest) = (await asked)[0]
    assert first["payload"]["details"] == {"bad_frame": "duplicate_id"}
    assert not rest or rest[0]["payload"]["status"] == "success"
    assert ran.read_text() == "ran\n"
    assert rig.view.instances[0].bad_frames == {"duplicate_id": 1}


async def test_a_large_answer_goes_in_pieces_that_fit_a_short_line(
    started: Any,  # noqa: F811
) -> None:
    rig = await started(command=HOSTILE, line_bytes=65_536)
    call = CALL.replace('{"n":1}', '{"do":"large","bytes":200000}') % ""
    size, last = await rig.result("ask", lines=[REQUEST % ("q", call)], ids=["q"], brief="q")
    assert size == 200_002
    assert (last["status"], last["result_node"]) == ("success", "$result")


async def test_a_request_is_answered_though_what_it_was_for_has_ended(
    started: Any,  # noqa: F811
    tmp_path: Path,
) -> None:
    rig = await started(command=HOSTILE)
    given = {"do": "count", "file": str(tmp_path / "ran"), "go": str(tmp_path / "go")}
    call = CALL.replace('{"n":1}', json.dumps(given)) % ""
    await rig.result("ask", lines=[REQUEST % ("q", call)], ids=[], leave=True)
    (answer,) = await rig.result("answers", id="q")
    assert answer["payload"]["error_code"] == "E_CANCELLED"


# -- answers that are wrong ----------------------------------------------------------------------


@pytest.mark.requirement("000.errors")
@pytest.mark.parametrize(
    ("payload", "why"),
    [
        ("{}", "the worker answered with no status"),
        ('{"status":"failed"}', "the worker answered with the status 'failed'"),
        ('{"status":"pong"}', "the worker answered with the status 'pong'"),
        ('{"status":"success","result_node":"b"}', "the worker's result is in the node 'b'"),
    ],
)
async def test_a_response_without_success_is_no_good_answer(
    started: Any,  # noqa: F811
    payload: str,
    why: str,
) -> None:
    rig = await started()
    line = ANSWER.replace('{"status":"success","result":%s}', payload)
    reply = await rig.ask("lines", lines=[line], mute=True)
    assert reply.error["code"] == "E_INTERNAL"
    assert reply.error["message"].startswith(why)


async def test_a_result_in_pieces_may_begin_anew(started: Any) -> None:  # noqa: F811
    rig = await started()
    piece = '{"type":"stream","correlation_id":"$ID","payload":%s}\n'
    lines = [
        piece % '{"node_name":"$result","chunk":"[1,"}',
        piece % '{"node_name":"$result","chunk":"[2","is_reset":true}',
        piece % '{"node_name":"$result","chunk":"]"}',
        ANSWER.replace('"result":%s', '"result_node":"$result"'),
    ]
    assert await rig.result("lines", lines=lines, mute=True) == [2]


@pytest.mark.requirement("000.errors")
@pytest.mark.parametrize("half", [ANSWER[:-1] % 1, (ANSWER % 1)[:70]])
async def test_who_dies_within_its_answer_has_broken_the_stream(
    started: Any,  # noqa: F811
    half: str,
) -> None:
    rig = await started()
    asked = asyncio.create_task(rig.ask("lines", lines=[half], mute=True))
    (member,) = rig.pool.members.values()
    await until(lambda: member.instance.pipe.reader._size >= 70)
    await rig.ask("exit", code=0)
    error = (await asked).error
    assert (error["code"], error["retryable"]) == ("E_STREAM_BROKEN", True)


# -- processes that are odd ----------------------------------------------------------------------


async def test_a_process_with_other_agents_than_its_fellows_is_refused(
    started: Any,  # noqa: F811
    tmp_path: Path,
) -> None:
    mark = tmp_path / "mark"
    script = 'if mkdir "$0" 2>/dev/null; then exec "$@" agents=it; else exec "$@" agents=b,c; fi'
    command = ("sh", "-c", script, str(mark), *PROGRAM)
    rig = await started(command=command, max_restarts=1)
    rig.system.engine.pools.scale("w", 2, 2)
    await until(lambda: rig.view.state == "failed")
    assert "it announced the agents b, c, and another process of this worker has it" in str(
        rig.view.reason
    )
    assert [agent.agent_id for agent in await rig.system.orchestrator.agents()] == ["it"]
    assert await rig.result()


async def test_why_it_did_not_start_is_more_than_its_last_line(started: Any) -> None:  # noqa: F811
    script = "for n in 1 2 3 4 5 6; do echo line $n >&2; done; exit 1"
    rig = await started(command=("sh", "-c", script), max_restarts=0)
    await until(lambda: rig.view.state == "failed")
    said = "line 2 | line 3 | line 4 | line 5 | line 6"
    assert f"the worker exited 1 before it was ready: {said}" in str(rig.view.reason)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"timeout": -1}, "timeout is from 0.001 to"),
        ({"max_attempts": 10**30}, "max_attempts is from 1 to 1000"),
        ({"retry_waits_ms": [-1]}, "retry_waits_ms are from 0"),
        ({"delivery": "twice"}, "'twice' is not a valid Delivery"),
    ],
)
async def test_options_that_could_not_be_kept_to_are_refused_at_its_start(
    started: Any,  # noqa: F811
    options: dict[str, Any],
    why: str,
) -> None:
    card = {"name": "it", "options": options}
    ready = {"type": "control", "payload": {"status": "ready", "agents": [card]}}
    script = 'echo "$0"; cat >/dev/null'
    rig = await started(command=("sh", "-c", script, json.dumps(ready)), max_restarts=0)
    await until(lambda: rig.view.state == "failed")
    assert f"the options of it: {why}" in str(rig.view.reason)


async def test_a_question_of_no_known_kind_says_so(started: Any) -> None:  # noqa: F811
    rig = await started()
    asks = {"operation": "human_input.request", "invoke_id": "a", "input_id": "b", "prompt": "?"}
    frame = {"type": "control", "correlation_id": "$ID", "payload": {**asks, "kind": "zzz"}}
    reply = await rig.ask("lines", lines=[json.dumps(frame) + "\n"], mute=True)
    assert reply.error["message"] == "the agent's question: 'zzz' is not a valid QuestionKind"
