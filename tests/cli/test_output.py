"""What is printed is harmless, and says what to do."""

import json

import pytest
import typer

from retinue.cli import output
from retinue.cli.stream import Printer
from retinue.errors import CircuitOpen, Conflict, InvalidInput, SettingsError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bPq...\x1b\\x", "x"),
        ("\x1bc\x1b(Bx", "x"),
        ("half \x1b", "half "),
        ("half \x1b[3", "half 3"),
        ("\x9b31mx\x7f\x00\x08", "31mx"),
        ("a\r\nb\rc", "a\nbc"),
        ("a\u202eb\u2066c", "abc"),
        ("Grüße 你好 👋", "Grüße 你好 👋"),
    ],
)
def test_terminal_escapes_are_taken_out(text: str, expected: str) -> None:
    assert output.plain(text) == expected


def test_taking_out_is_quick() -> None:
    assert output.plain("\x1b]" * 50_000) == ""
    assert len(output.plain("\x1b[" + "1;" * 200_000)) < 500_000


def test_a_table_is_aligned_and_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("a", "long"), [("\x1b[1mxyz", None), ("x", "two\nlines")])
    assert capsys.readouterr().out == "A    LONG\nxyz  -\nx    two lines\n"
    output.table(("a", "b"), [])
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "there are none\n")


@pytest.mark.parametrize(
    ("error", "code", "advice"),
    [
        (InvalidInput("no"), 2, ""),
        (SettingsError("no"), 2, ""),
        (Conflict("no"), 1, ""),
        (CircuitOpen("no"), 1, "try again"),
    ],
)
def test_an_error_has_a_code_and_a_status(
    error: InvalidInput, code: int, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as caught:
        output.fail(error)
    assert caught.value.exit_code == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error {error.code}: no\n")
    assert advice in printed.err


def event(event_type: str, **data: object) -> dict[str, object]:
    return {"executionId": "E", "eventType": event_type, "sequence": 1, "timestamp": "T", **data}


def test_text_goes_to_stdout_and_the_rest_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer(as_json=False)
    for one in (
        event("attempt_started", attempt=1),
        event("thinking", status="hm\x1b[2J"),
        event("content_chunk", content="one "),
        event("content_chunk", content="\x1b[31mtwo"),
        event("progress", percentage=50.4, message="half"),
        event("progress", percentage=None, message="more"),
        event("progress", percentage="planning", message=None),
        event("thinking", content="a command's"),
        event("tool_call", tool_name="ls", arguments={"a": 1}),
        event("tool_result", tool_name="ls", result=[]),
        event("log", level="info", message="line"),
        event("input_required", prompt="why?", question_id="Q"),
        event("input_required", prompt="may I?", question_id="P", kind="approval"),
        event("attempt_started", attempt=2, is_reset=True),
        event("unheard_of"),
        event("usage", input_tokens=1, output_tokens=2, cost_usd=0.0005),
        event("completed", result=None),
    ):
        printer.event(one)
    printed = capsys.readouterr()
    assert printed.out == "one two\nnull\n"  # the second attempt streamed nothing
    assert printed.err.splitlines() == [
        "· hm",
        "· 50 % half",
        "· more",
        "· planning",
        "· a command's",
        '· calls ls {"a": 1}',
        "· ls answered",
        "· info: line",
        "? why?",
        "  answer with: retinue question answer Q VALUE",
        "? may I?",
        "  answer with: retinue question approve P (or reject)",
        "· attempt 2: starts over",
        "· unheard_of",
        "· spent 1 + 2 tokens, $0.0005",
        "· completed: E",
    ]


def test_a_result_is_shown_where_no_text_was(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer(as_json=False)
    printer.event(event("completed", result={"a": "ü"}))
    assert json.loads(capsys.readouterr().out) == {"a": "ü"}


@pytest.mark.parametrize(
    ("result", "shown", "more"),
    [
        ("one two", False, False),
        (None, False, False),
        ({"said": "one two\n"}, False, False),
        ({"said": "one two", "n": 2}, False, True),
        ("another", True, False),
        ({"a": 1, "b": 2}, True, False),
        (["one two"], True, False),
        ({}, True, False),
    ],
)
def test_a_result_is_shown_unless_it_is_what_was_streamed(
    result: object, *, shown: bool, more: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    printer = Printer(as_json=False)
    for piece in ("one ", "", "two", "\n"):
        printer.event(event("content_chunk", content=piece))
    printer.event(event("completed", result=result))
    printed = capsys.readouterr()
    text, _, rest = printed.out.partition("\n")
    assert text == "one two"
    assert (json.loads(rest) if rest else None) == (result if shown else None)
    assert printed.err.startswith("· completed: E\n")
    assert ("retinue execution show E" in printed.err) is more


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled"])
def test_what_was_erased_is_said_to_be(end: str, capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer(as_json=False)
    for kind in ("thinking", "usage", "content_chunk", end):
        printer.event(event(kind, erased=True))
    printed = capsys.readouterr()
    assert printed.out == ""
    said = ["· what it was given and what it said was erased", f"· {end}: E"]
    assert printed.err.splitlines() == said


def test_a_failure_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer(as_json=False)
    printer.event(event("content_chunk", content="half"))
    printer.event(event("failed", error="went wrong", code="E_TIMEOUT"))
    printed = capsys.readouterr()
    assert printed.out == "half\n"
    assert printed.err.startswith("error E_TIMEOUT: went wrong\n")


def test_as_json_every_event_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer(as_json=True)
    printer.event(event("content_chunk", content="a\x1b\n"))
    printer.event(event("failed", error="x"))
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["eventType"] for line in lines] == ["content_chunk", "failed"]
