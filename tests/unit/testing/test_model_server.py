"""The fake model answers in four APIs as its prompt says, streamed and whole, well and badly."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from retinue.testing.model_server import ModelServer

SCRIPT = '[[think hm]] [[say hi]] [[usage 7 3]] [[tool ls {"path": "[x]"}]] [[say done]]'
APIS = ("anthropic", "openai-chat", "openai-responses", "gemini")


@pytest.fixture
def models() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


def request(api: str, prompt: str, *, answered: bool = False) -> tuple[str, dict[str, Any]]:
    """Return the path and the body of a request; ``answered``: its tool has said something."""
    said: dict[str, Any] = {"role": "user", "content": prompt}
    match api:
        case "anthropic":
            result: Any = {"type": "tool_result", "tool_use_id": "t", "content": "x"}
            more: list[Any] = [{"role": "user", "content": [result]}] if answered else []
            return "/v1/messages", {"model": "m", "messages": [said, *more]}
        case "openai-chat":
            tool = {"role": "tool", "tool_call_id": "t", "content": "x"}
            more = [tool] if answered else []
            return "/v1/chat/completions", {"model": "m", "messages": [said, *more]}
        case "openai-responses":
            item = {"type": "function_call_output", "call_id": "t", "output": "x"}
            content = [{"type": "input_text", "text": prompt}]
            user: dict[str, Any] = {"type": "message", "role": "user", "content": content}
            return "/v1/responses", {"model": "m", "input": [user, *([item] if answered else [])]}
    user = {"role": "user", "parts": [{"text": prompt}]}
    tool_said = {"role": "user", "parts": [{"functionResponse": {"name": "ls", "response": {}}}]}
    path = "/v1beta/models/m:generateContent"
    return path, {"contents": [user, *([tool_said] if answered else [])]}


def ask(models: ModelServer, api: str, prompt: str, **more: Any) -> httpx.Response:
    path, body = request(api, prompt, **more)
    return httpx.post(models.url + path, json=body, timeout=10)


def stream(models: ModelServer, api: str, prompt: str) -> list[dict[str, Any]]:
    path, body = request(api, prompt)
    body["stream"] = True
    path = path.replace(":generateContent", ":streamGenerateContent?alt=sse")
    if api == "gemini":
        del body["stream"]
    with httpx.stream("POST", models.url + path, json=body, timeout=10) as response:
        return [
            json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")
        ]


def whole(api: str, body: dict[str, Any]) -> tuple[str, Any, tuple[int, int]]:
    """Return the text, the tool's arguments, and what was used."""
    match api:
        case "anthropic":
            parts = {part["type"]: part for part in body["content"]}
            given = parts.get("tool_use", {}).get("input")
            usage = body["usage"]
            text = parts.get("text", {}).get("text", "")
            return text, given, (usage["input_tokens"], usage["output_tokens"])
        case "openai-chat":
            message = body["choices"][0]["message"]
            calls = message.get("tool_calls")
            given = json.loads(calls[0]["function"]["arguments"]) if calls else None
            usage = body["usage"]
            return message["content"], given, (usage["prompt_tokens"], usage["completion_tokens"])
        case "openai-responses":
            items = {item["type"]: item for item in body["output"]}
            call = items.get("function_call")
            given = json.loads(call["arguments"]) if call else None
            usage = body["usage"]
            text = items["message"]["content"][0]["text"]
            return text, given, (usage["input_tokens"], usage["output_tokens"])
    parts_of = body["candidates"][0]["content"]["parts"]
    text = "".join(p.get("text", "") for p in parts_of if not p.get("thought"))
    call = next((p["functionCall"]["args"] for p in parts_of if "functionCall" in p), None)
    usage = body["usageMetadata"]
    return text, call, (usage["promptTokenCount"], usage["candidatesTokenCount"])


@pytest.mark.parametrize("api", APIS)
def test_a_tool_ends_a_reply_and_the_rest_follows_its_answer(models: ModelServer, api: str) -> None:
    first = ask(models, api, SCRIPT)
    assert whole(api, first.json()) == ("hi ", {"path": "[x]"}, (7, 3))
    second = ask(models, api, SCRIPT, answered=True)
    assert whole(api, second.json()) == ("done ", None, (10, 5))
    assert [(r.api, r.reply) for r in models.requests] == [(api, 0), (api, 1)]
    assert whole(api, ask(models, api, "no script").json())[0] == "no script "


@pytest.mark.parametrize("api", APIS)
def test_it_streams_piece_by_piece(models: ModelServer, api: str) -> None:
    events = stream(models, api, "[[think hm]] [[slow 3 0.01]] [[say end]]")
    said = json.dumps(events)
    for piece in ("hm", "0 ", "1 ", "2 ", "end "):
        assert f'"{piece}"' in said
    match api:
        case "anthropic":
            texts = [e["delta"].get("text") for e in events if e["type"] == "content_block_delta"]
            assert texts == [None, "0 ", "1 ", "2 ", "end "]
            assert events[-1]["type"] == "message_stop"
        case "openai-chat":
            assert events[-2]["choices"][0]["finish_reason"] == "stop"
            assert events[-1]["usage"]["total_tokens"] == 15
        case "openai-responses":
            deltas = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
            assert deltas == ["0 ", "1 ", "2 ", "end "]
            assert events[-1]["type"] == "response.completed"
        case _:
            assert events[-1]["candidates"][0]["finishReason"] == "STOP"


@pytest.mark.parametrize("api", APIS)
def test_it_fails_as_it_is_told(models: ModelServer, api: str) -> None:
    refused = ask(models, api, "[[http 529]]")
    assert (refused.status_code, "529" in refused.text) == (529, True)
    assert ask(models, api, "[[httponce 503]] [[say well]]").status_code == 503
    assert ask(models, api, "[[httponce 503]] [[say well]]").status_code == 200
    with pytest.raises(httpx.RemoteProtocolError):
        stream(models, api, "[[say a]] [[cut]] [[say never]]")


def test_a_stall_ends_with_the_server() -> None:
    with ModelServer() as models:
        path, body = request("anthropic", "[[hang 600]]")
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(models.url + path, json=body, timeout=0.3)


def test_the_last_prompt_with_a_script_counts(models: ModelServer) -> None:
    """CLIs put their own texts around a prompt, and join prompts that nobody answered."""
    parts = [{"type": "text", "text": t} for t in ("[[http 401]]", "[[say this]]", "<reminder>")]
    body = {"model": "m", "messages": [{"role": "user", "content": parts}]}
    answer = httpx.post(f"{models.url}/v1/messages", json=body)
    assert answer.json()["content"][0]["text"] == "this "
