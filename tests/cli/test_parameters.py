"""Words become parameters, and a word becomes a capability."""

import io
from pathlib import Path
from typing import Any

import pytest

from retinue.cli.parameters import Able, parse, resolve
from retinue.errors import AgentNotFound, InvalidInput

SCHEMA = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "share": {"type": "number"},
        "deep": {"type": "boolean"},
        "list": {"type": "array"},
        "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "either": {"type": ["string", "integer"]},
        "unclear": {"anyOf": [{"$ref": "#/$defs/X"}, {"type": "integer"}]},
    },
}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("text=5", {"text": "5"}),
        ("text=", {"text": ""}),
        ("text=a=b:=c", {"text": "a=b:=c"}),
        ("count=5", {"count": 5}),
        ("count=-5", {"count": -5}),
        ("share=2", {"share": 2}),
        ("share=2.5", {"share": 2.5}),
        ("deep=true", {"deep": True}),
        ("maybe=null", {"maybe": None}),
        ("maybe=3", {"maybe": 3}),
        ("either=3", {"either": "3"}),
        ("unclear=3", {"unclear": "3"}),
        ("unknown=3", {"unknown": "3"}),
        ("list:=[1, 2]", {"list": [1, 2]}),
        ("text:=5", {"text": 5}),
        (":=5", None),
        ("=5", None),
        ("text", None),
        ("", None),
        ("count=5.5", None),
        ("count=five", None),
        ("share=nan", None),
        ("share=inf", None),
        ("deep=yes", None),
        ("list=1", None),
        ("list:=[1,", None),
        ("list:=[NaN]", None),
        ("list:=" + "[" * 100_000, None),
    ],
)
def test_words_are_read_by_the_schema(word: str, expected: dict[str, Any] | None) -> None:
    if expected is not None:
        assert parse([word], SCHEMA) == expected
        return
    with pytest.raises(InvalidInput) as caught:
        parse([word], SCHEMA)
    assert word.partition("=")[0].rstrip(":") in caught.value.message


def test_without_a_schema_everything_is_text() -> None:
    assert parse(["a=1", "b=true"], None) == {"a": "1", "b": "true"}


def test_a_key_comes_once() -> None:
    with pytest.raises(InvalidInput, match="text is given twice"):
        parse(["text=a", "text:=1"], None)


def test_a_value_may_be_a_files_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("über\n")
    (tmp_path / "b.bin").write_bytes(b"\xff\xfe\xff")
    assert parse([f"text=@{tmp_path}/a.txt"], None) == {"text": "über\n"}
    with pytest.raises(InvalidInput, match="not UTF-8"):
        parse([f"text=@{tmp_path}/b.bin"], None)
    with pytest.raises(InvalidInput, match="No such file"):
        parse([f"text=@{tmp_path}/c.txt"], None)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"piped")))
    assert parse(["text=@-"], None) == {"text": "piped"}


def agent(agent_id: str, name: str, *capabilities: str) -> dict[str, Any]:
    able = [{"name": c, "description": "", "parameters": None} for c in capabilities]
    return {"agent_id": agent_id, "name": name, "capabilities": able}


AGENTS = [
    agent("one", "First", "echo", "shout"),
    agent("two", "Second", "echo"),
    agent("echo", "Twin", "other"),
    agent("four", "Twin", "more"),
]


@pytest.mark.parametrize(
    ("word", "wanted", "expected"),
    [
        ("echo", None, Able("echo", "one", None, bound=False)),
        ("echo", "two", Able("echo", "two", None, bound=True)),
        ("echo", "Second", Able("echo", "two", None, bound=True)),
        ("two", None, Able("echo", "two", None, bound=True)),
        ("Second", None, Able("echo", "two", None, bound=True)),
    ],
)
def test_a_word_is_a_capability_else_an_agent(
    word: str, wanted: str | None, expected: Able
) -> None:
    assert resolve(word, wanted, AGENTS) == expected


def test_what_a_word_cannot_be() -> None:
    with pytest.raises(InvalidInput, match="echo, shout"):
        resolve("one", None, AGENTS)
    with pytest.raises(AgentNotFound, match=r"shuot; did you mean shout\?"):
        resolve("shuot", None, AGENTS)
    with pytest.raises(AgentNotFound, match="no agent three"):
        resolve("echo", "three", AGENTS)
    with pytest.raises(AgentNotFound, match="shout of agent two"):
        resolve("shout", "two", AGENTS)
    with pytest.raises(InvalidInput, match="several agents have the name Twin: echo, four"):
        resolve("Twin", None, AGENTS)


def test_a_text_is_the_prompt_where_one_is_taken() -> None:
    schema = {"properties": {"prompt": {"type": "string"}, "n": {"type": "integer"}}}
    assert parse(["Review this diff"], schema) == {"prompt": "Review this diff"}
    assert parse(["why is a == b", "n=3"], schema) == {"prompt": "why is a == b", "n": 3}
    assert parse(["prompt=x=1"], schema) == {"prompt": "x=1"}
    with pytest.raises(InvalidInput, match="put it in quotes"):
        parse(["Review", "this"], schema)
    with pytest.raises(InvalidInput, match="is no parameter"):
        parse(["Review this diff"], SCHEMA)
