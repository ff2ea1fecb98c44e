"""Questions: asked once, answered once, by whom they may be; kept for an attempt that repeats."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from retinue import Context, Options, Orchestrator, Runtime, Settings, capability
from retinue.domain.event import Event
from retinue.domain.execution import State, Task
from retinue.domain.ids import now_us
from retinue.domain.intent import Answer
from retinue.domain.principal import Principal, Role
from retinue.domain.question import QuestionKind
from retinue.domain.strictjson import loads
from retinue.errors import Conflict, Forbidden, InvalidInput, NotFound
from retinue.interfaces import Page


async def follow(orchestrator: Orchestrator, execution_id: str) -> list[Event]:
    return [e async for events in orchestrator.follow(execution_id) for e in events]


@capability()
async def approve(context: Context) -> Any:
    """Ask a person."""
    return await context.ask("May I?", {"type": "boolean"})


async def asked(orchestrator: Orchestrator) -> str:
    async with asyncio.timeout(10):
        while not (found := (await orchestrator.questions(Page())).items):
            await asyncio.sleep(0.002)
    return found[0].id


async def test_a_question_is_answered_once_and_the_agent_goes_on(
    orchestrator: Orchestrator,
) -> None:
    orchestrator.register_agent(approve)
    accepted = await orchestrator.submit(
        Task(session_id="s", capability="approve", parameters={}, deadline_us=300_000)
    )
    question = await asked(orchestrator)
    execution = await orchestrator.execution(accepted.execution_id)
    assert execution.state is State.INPUT_REQUIRED
    await asyncio.sleep(0.4)  # longer than its deadline, which stands still meanwhile
    await orchestrator.answer(question, True)
    with pytest.raises(Conflict):
        await orchestrator.answer(question, False)
    events = await follow(orchestrator, accepted.execution_id)
    assert [e.type.value for e in events] == ["input_required", "completed"]
    assert loads(events[-1].data)["result"] is True
    with pytest.raises(NotFound):
        await orchestrator.answer("01ARZ3NDEKTSV4RRFFQ69G5FAV", True)


async def test_a_question_nobody_answers_expires(orchestrator: Orchestrator) -> None:
    @capability()
    async def impatient(context: Context) -> Any:
        return await context.ask("Quick?", timeout=0.05)

    orchestrator.register_agent(impatient)
    async with asyncio.timeout(10):
        reply = await orchestrator.orchestrate("s", {"capability": "impatient"})
    assert reply["error"] == "Nobody answered the question in time."
    assert (await orchestrator.questions(Page())).items == []


async def test_cancelling_closes_the_question(orchestrator: Orchestrator) -> None:
    orchestrator.register_agent(approve)
    accepted = await orchestrator.submit(Task(session_id="s", capability="approve", parameters={}))
    question = await asked(orchestrator)
    assert (await orchestrator.cancel(accepted.execution_id)).state is State.CANCELLED
    with pytest.raises(Conflict, match="lost"):
        await orchestrator.answer(question, True)


async def test_questions_nobody_answers_do_not_break_the_agent(
    orchestrator: Orchestrator,
) -> None:
    @capability(options=Options(failure_threshold=2))
    async def impatient(context: Context) -> Any:
        return await context.ask("Quick?", timeout=0.01)

    orchestrator.register_agent(impatient)
    for _ in range(4):
        await orchestrator.orchestrate("s", {"capability": "impatient"})
    assert (await orchestrator.agent("impatient")).status == "available"


async def test_an_answer_has_to_fit_what_was_asked_for(orchestrator: Orchestrator) -> None:
    orchestrator.register_agent(approve)
    accepted = await orchestrator.submit(Task(session_id="s", capability="approve", parameters={}))
    question = await asked(orchestrator)
    with pytest.raises(InvalidInput, match="boolean"):
        await orchestrator.answer(question, "no boolean")
    await orchestrator.answer(question, False)
    events = await follow(orchestrator, accepted.execution_id)
    assert loads(events[-1].data)["result"] is False


async def test_cancelled_questions_of_a_blocking_agent_leave_no_thread(
    orchestrator: Orchestrator,
) -> None:
    @capability()
    def waits(context: Context) -> Any:
        return context.run(context.ask("Well?"))

    orchestrator.register_agent(waits)
    for _ in range(20):
        accepted = await orchestrator.submit(
            Task(session_id="s", capability="waits", parameters={})
        )
        await asked(orchestrator)
        await orchestrator.cancel(accepted.execution_id)
    accepted = await orchestrator.submit(Task(session_id="s", capability="waits", parameters={}))
    await orchestrator.answer(await asked(orchestrator), 7)
    assert loads((await follow(orchestrator, accepted.execution_id))[-1].data)["result"] == 7


async def test_an_answer_given_through_another_process_arrives(runtime: Runtime) -> None:
    orchestrator = runtime.orchestrator
    orchestrator.register_agent(approve)
    accepted = await orchestrator.submit(Task(session_id="s", capability="approve", parameters={}))
    question = await asked(orchestrator)
    # As another process does it: into the store only.
    await runtime.store.write(Answer(question, None, "else", b"true", now_us()))
    async with asyncio.timeout(10):
        events = await follow(orchestrator, accepted.execution_id)
    assert loads(events[-1].data)["result"] is True


# -- who may answer ----------------------------------------------------------------------------


@capability()
async def deploy(context: Context) -> str:
    """Ask for leave."""
    leave = await context.approve("Deploy to production?", role="admin")
    return "deployed" if leave else "left alone"


@pytest.mark.parametrize(("said", "result"), [(True, "deployed"), (False, "left alone")])
async def test_an_approval_is_for_the_role_it_names(
    orchestrator: Orchestrator, said: bool, result: str
) -> None:
    orchestrator.register_agent(deploy)
    accepted = await orchestrator.submit(Task(session_id="s", capability="deploy", parameters={}))
    question = await asked(orchestrator)
    (shown,) = (await orchestrator.questions(Page())).items
    assert (shown.kind, shown.role) == (QuestionKind.APPROVAL, Role.ADMIN)
    with pytest.raises(Forbidden):
        await orchestrator.answer(question, True, Principal("op", "local", Role.OPERATOR))
    with pytest.raises(InvalidInput, match="boolean"):
        await orchestrator.answer(question, "yes", Principal("boss", "local", Role.ADMIN))
    await orchestrator.answer(question, said, Principal("boss", "local", Role.ADMIN))
    events = await follow(orchestrator, accepted.execution_id)
    assert loads(events[0].data)["kind"] == "approval"
    assert loads(events[-1].data)["result"] == result


@pytest.mark.parametrize(
    ("schema", "said"),
    [({"type": "nothing"}, "no JSON Schema"), ({"$ref": "http://example.com/s"}, "no JSON Schema")],
)
async def test_what_is_no_schema_cannot_be_asked_with(
    orchestrator: Orchestrator, schema: dict[str, Any], said: str
) -> None:
    @capability()
    async def muddled(context: Context) -> Any:
        return await context.ask("What?", schema)

    orchestrator.register_agent(muddled)
    reply = await orchestrator.orchestrate("s", {"capability": "muddled"})
    assert reply["success"] is False
    assert said in reply["error"]
    assert (await orchestrator.questions(Page())).items == []


@pytest.mark.parametrize("given", ["2", True, -1, float("nan"), float("inf"), 1e300])
@pytest.mark.parametrize("what", ["ask", "approve", "call"])
async def test_what_is_no_timeout_is_called_so(
    orchestrator: Orchestrator, given: Any, what: str
) -> None:
    @capability()
    async def muddled(context: Context) -> Any:
        return await getattr(context, what)("approve", timeout=given)

    orchestrator.register_agent(muddled)
    async with asyncio.timeout(10):
        reply = await orchestrator.orchestrate("s", {"capability": "muddled"})
    assert reply["error_info"]["code"] == "E_INVALID_INPUT"
    assert "timeout is a number of seconds" in reply["error"]
    assert (await orchestrator.questions(Page())).items == []


# -- who cannot wait ---------------------------------------------------------------------------


async def test_who_cannot_wait_gets_the_question_and_the_work_goes_on(
    orchestrator: Orchestrator,
) -> None:
    orchestrator.register_agent(approve)
    task = Task(session_id="s", capability="approve", parameters={})
    async with asyncio.timeout(10):
        reply = await orchestrator.perform(task, until_asked=True)
    assert reply.state is State.INPUT_REQUIRED
    assert reply.error is not None
    assert reply.error["code"] == "E_HUMAN_INPUT_REQUIRED"
    details = reply.error["details"]
    assert (details["prompt"], details["schema"]) == ("May I?", {"type": "boolean"})
    await orchestrator.answer(details["question_id"], True)
    events = await follow(orchestrator, details["execution_id"])
    assert loads(events[-1].data)["result"] is True


async def test_without_a_question_there_is_just_the_reply(orchestrator: Orchestrator) -> None:
    @capability()
    async def plain() -> int:
        return 5

    orchestrator.register_agent(plain)
    task = Task(session_id="s", capability="plain", parameters={})
    reply = await orchestrator.perform(task, until_asked=True)
    assert (reply.state, reply.data) == (State.COMPLETED, b"5")


# -- repeated attempts -------------------------------------------------------------------------


async def test_a_repeated_attempt_gets_the_answers_that_were_given(
    orchestrator: Orchestrator,
) -> None:
    given: list[list[Any]] = []

    @capability(options=Options(delivery="at_least_once", max_attempts=2, retry_waits_ms=(1,)))
    async def twice(context: Context) -> list[Any]:
        answers = [await context.ask("One?"), await context.ask("Two?")]
        given.append(answers)
        if context.attempt == 1:
            raise RuntimeError("not this time")
        return [*answers, await context.ask("Three?")]

    orchestrator.register_agent(twice)
    accepted = await orchestrator.submit(Task(session_id="s", capability="twice", parameters={}))
    for value in (1, 2, 3):
        await orchestrator.answer(await asked(orchestrator), value)
    events = await follow(orchestrator, accepted.execution_id)
    assert loads(events[-1].data)["result"] == [1, 2, 3]
    assert given == [[1, 2], [1, 2]]
    assert [e.type.value for e in events].count("input_required") == 3
    notes = [loads(e.data)["message"] for e in events if e.type.value == "log"]
    assert "answered already, to an earlier attempt: Two?" in notes


async def test_after_a_crash_only_what_is_open_is_asked_again(tmp_path: Path) -> None:
    @capability(options=Options(delivery="idempotent"))
    async def careful(context: Context) -> list[Any]:
        return [await context.ask("One?"), await context.ask("Two?")]

    settings = Settings(data_dir=tmp_path, examples=False, entry_points=False)
    before = Runtime(settings)
    await before.start()
    before.orchestrator.register_agent(careful)
    task = Task(session_id="s", capability="careful", parameters={})
    accepted = await before.orchestrator.submit(task)
    first = await asked(before.orchestrator)
    await before.orchestrator.answer(first, "kept")
    async with asyncio.timeout(10):
        while (lost := await asked(before.orchestrator)) == first:
            await asyncio.sleep(0.002)
    # Gone without a word: nothing is drained, no end is written.
    before.engine.scheduler.stop()
    for attempt in list(before.engine.attempts.running.values()):
        assert attempt.task is not None
        attempt.task.cancel()
    await asyncio.sleep(0)
    await before.store.close()

    after = Runtime(settings)
    after.orchestrator.register_agent(careful)
    orchestrator = await after.start()
    question = await asked(orchestrator)
    with pytest.raises(Conflict, match="lost"):
        await orchestrator.answer(lost, "too late")
    await orchestrator.answer(question, "new")
    events = await follow(orchestrator, accepted.execution_id)
    assert loads(events[-1].data)["result"] == ["kept", "new"]
    await after.stop(grace=1)
