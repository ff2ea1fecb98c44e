"""docs/protocol.md: its transcripts are replayed, its schema and its rules are the code's."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from retinue.cli.check.peer import Peer, Plan
from retinue.cli.check.suite import EVERY_RUN, RULES
from retinue.wire import Frame, decode_message
from retinue.wire.payloads import InvokeOptions
from retinue.wire.schema import SHAPES, frames
from retinue.wire.strict import KINDS

ROOT = Path(__file__).parents[2]
WORKERS = ROOT / "examples" / "workers"
DOCUMENT = (ROOT / "docs" / "protocol.md").read_text()
TRANSCRIPTS = re.findall(r"```transcript(?: (\w+))?\n(.*?)```", DOCUMENT, re.S)
HELLO = """
from retinue import capability
from retinue.sdk import serve
@capability()
def hello(name: str) -> str:
    "Greet."
    return name
serve(hello, module_name="hello")
"""
COMMANDS = {
    None: [sys.executable, str(WORKERS / "python_worker.py")],
    "ready": [sys.executable, "-c", HELLO],
}
NAMES = {"message_id", "correlation_id", "invoke_id", "input_id"}
"""What stands for something else in every run, but for the same thing all through one."""


class Replay:
    """One run of a transcript: what its names stand for this time."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def sent(self, value: Any) -> Any:
        """Return a frame with this run's names."""
        if isinstance(value, dict):
            return {k: self.sent(v) for k, v in value.items()}
        return self.names.get(value, value) if isinstance(value, str) else value

    def same(self, said: Any, real: Any, key: str = "") -> bool:
        """Say whether a frame is the one of the transcript."""
        if key in NAMES and isinstance(said, str) and isinstance(real, str):
            return self.names.setdefault(said, real) == real
        if key == "timestamp":
            return isinstance(real, str) and real.endswith("Z")
        if key in {"duration_ms", "elapsed_ms"}:
            return isinstance(real, int)
        if isinstance(said, dict) and isinstance(real, dict):
            # A pong may say more.
            missing = said.keys() - real.keys()
            more = real.keys() - said.keys() if said.get("status") != "pong" else set()
            return not missing and not more and all(self.same(said[k], real[k], k) for k in said)
        if isinstance(said, list) and isinstance(real, list):
            return len(said) == len(real) and all(map(self.same, said, real))
        return bool(said == real)


@pytest.mark.parametrize(("worker", "text"), TRANSCRIPTS)
async def test_transcripts_are_true(worker: str, text: str) -> None:
    replay = Replay()
    async with Peer(Plan(COMMANDS[worker or None], seconds=30, start_seconds=30)) as peer:
        await peer.until_ready()
        heard = 0 if worker else len(peer.items)
        for line in text.strip().splitlines():
            said = json.loads(line[2:])
            if line.startswith("> "):
                replay.names[said["message_id"]] = said["message_id"]
                peer.begin(said["message_id"])
                peer.write(json.dumps(replay.sent(said)).encode() + b"\n")
                continue

            def next_one(frame: Frame, at: int = heard) -> bool | None:
                return True if len(peer.items) > at and frame is peer.items[at] else None

            await peer.first(line, next_one, 30)
            real = json.loads(peer.raw.splitlines()[heard])
            assert replay.same(said, real), f"expected {said}\nheard {real}"
            heard += 1


def test_the_transcripts_were_found() -> None:
    assert len(TRANSCRIPTS) == 8


def test_the_schema_is_the_records() -> None:
    stored = json.loads((ROOT / "docs" / "protocol.schema.json").read_text())
    assert stored == frames(), "run: retinue worker schema > docs/protocol.schema.json"


def test_the_document_s_frames_fit_the_schema_and_the_schema_refuses_others() -> None:
    check = jsonschema_rs.validator_for(frames())
    written = [
        json.loads(line[2:])
        for _, text in TRANSCRIPTS
        for line in text.splitlines()
        if line.startswith("< ")
    ]
    for frame in written:
        check.validate(frame)
        decode_message(json.dumps(frame).encode())
    assert not check.is_valid({**written[0], "type": "shout"})
    assert not check.is_valid({**written[0], "timestamp": "2026-01-31T21:00:00"})
    assert not check.is_valid({k: v for k, v in written[0].items() if k != "message_id"})
    assert not check.is_valid({**written[0], "payload": {"operation": "unheard-of"}})


@pytest.mark.parametrize(
    "command",
    [
        COMMANDS[None],
        ["node", str(WORKERS / "node_worker.mjs")],
        ["sh", str(WORKERS / "shell_worker.sh")],
    ],
    ids=["python", "node", "shell"],
)
async def test_what_the_example_workers_write_fits_the_schema(command: list[str]) -> None:
    check = jsonschema_rs.validator_for(frames())
    async with Peer(Plan(command, seconds=30, start_seconds=30)) as peer:
        await peer.until_ready()
        for name in peer.cards:
            sent = peer.invoke(name, {"seconds": 0.01}, stream=True)
            if name != "ask":
                await peer.answer(sent, name)
        for order in ("ping", "unheard-of", "shutdown"):
            await peer.answer(peer.order(order, timeout_ms=10), order)
        await peer.ended(30)
        lines = peer.raw.splitlines()
        assert len(lines) >= 5
        for line in lines:
            check.validate(json.loads(line))


def test_the_document_names_every_rule_frame_option_and_kind() -> None:
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.*) \|$", DOCUMENT, re.M))
    for name, (_, demand) in RULES.items():
        assert rows[name] == demand
    for name, demand in EVERY_RUN.items():
        assert rows[name] == demand
    for kind in KINDS:
        assert f"`{kind}`" in DOCUMENT
    for shape in SHAPES:
        assert shape in DOCUMENT
    for option in ("timeout_ms", "stream", "stream_node", "accumulated", "capability"):
        assert option in InvokeOptions.__struct_fields__
        assert f"`options.{option}`" in DOCUMENT
