"""What a model answers, in the words of four APIs. Pure: steps in, frames out.

Each API is a ``Wire``: how a request is read (``asked``) and how a reply is written, streamed
(``frames``) or whole (``whole``). A frame that is a number is a pause in seconds; ``CUT`` ends the
connection in the middle.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from retinue.testing.script import Step, has_script

CUT = b""
Frame = bytes | float


class Asked(NamedTuple):
    """What a request asks: the scripted prompt, and which reply to it this is."""

    prompt: str
    reply: int
    stream: bool


class Piece(NamedTuple):
    """A part of a reply: ``text``, ``think``, ``tool`` (``text`` its name), or ``wait``."""

    kind: str
    text: str = ""
    data: Any = None


class Reply(NamedTuple):
    """A reply: its parts and what it cost."""

    pieces: list[Piece]
    tokens_in: int
    tokens_out: int
    number: str

    @property
    def calls(self) -> list[Piece]:
        """The tools it calls."""
        return [piece for piece in self.pieces if piece.kind == "tool"]

    def said(self, kind: str) -> str:
        """Return all of one kind of text."""
        return "".join(piece.text for piece in self.pieces if piece.kind == kind)


def reply_of(steps: list[Step], number: str) -> Reply:
    """Return the reply that steps of a script make."""
    pieces: list[Piece] = []
    tokens = (10, 5)
    for step in steps:
        match step.verb:
            case "say":
                pieces.append(Piece("text", step.rest + " "))
            case "think":
                pieces.append(Piece("think", step.rest))
            case "tool":
                name, data = step.call()
                pieces.append(Piece("tool", name, data))
            case "slow":
                for at in range(int(step.number(0))):
                    pieces += [Piece("text", f"{at} "), Piece("wait", data=step.number(1, 0.1))]
            case "hang":
                pieces.append(Piece("wait", data=step.number(0, 60.0)))
            case "usage":
                tokens = (int(step.number(0)), int(step.number(1)))
            case "cut":
                pieces.append(Piece("cut"))
    return Reply(pieces, *tokens, number)


def _last(said: list[tuple[str, str]]) -> tuple[str, int]:
    """Return the prompt and how many tools have answered since; ``said`` is (kind, text)."""
    users = [at for at, (kind, _) in enumerate(said) if kind == "user"]
    scripted = [at for at in users if has_script(said[at][1])]
    at = (scripted or users or [-1])[-1]
    if at < 0:
        return "", 0
    return said[at][1], sum(kind == "tool" for kind, _ in said[at + 1 :])


def _text(content: Any) -> str:
    """Return a message's text; of several the last one with a script: a CLI may join prompts."""
    if isinstance(content, str):
        return content
    texts = [part["text"] for part in content or () if isinstance(part.get("text"), str)]
    scripted = [text for text in texts if has_script(text)]
    return scripted[-1] if scripted else "\n".join(texts)


def _sse(data: Any, name: str | None = None) -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode()


class Wire:
    """One API."""

    def asked(self, body: dict[str, Any], path: str) -> Asked:
        """Read a request."""
        raise NotImplementedError

    def frames(self, reply: Reply, model: str) -> Iterator[Frame]:
        """Yield a streamed reply."""
        raise NotImplementedError

    def whole(self, reply: Reply, model: str) -> dict[str, Any]:
        """Return a reply that is not streamed."""
        raise NotImplementedError

    def error(self, status: int) -> dict[str, Any]:
        """Return the body of an error."""
        kind = "overloaded_error" if status >= 500 else "authentication_error"  # noqa: PLR2004
        said = f"as scripted: {status}"
        return {"type": "error", "error": {"type": kind, "message": said, "code": status}}


class Anthropic(Wire):
    """``/v1/messages``."""

    def asked(self, body: dict[str, Any], path: str) -> Asked:
        """Read a request."""
        said = []
        for message in body.get("messages", ()):
            content = message["content"]
            results = [
                part
                for part in (content if isinstance(content, list) else ())
                if part.get("type") == "tool_result"
            ]
            if message["role"] == "user" and not results:
                said.append(("user", _text(content)))
            said += [("tool", "")] * len(results)
        return Asked(*_last(said), bool(body.get("stream")))

    def _blocks(self, reply: Reply) -> Iterator[tuple[dict[str, Any], list[Any]]]:
        """Yield each block's beginning and its deltas; a number among these is a pause."""
        for kind, block in (("think", "thinking"), ("text", "text")):
            deltas: list[Any] = []
            for piece in reply.pieces:
                if piece.kind == kind:
                    deltas.append({"type": f"{block}_delta", block: piece.text})
                elif piece.kind == "wait" and kind == "text":
                    deltas.append(piece.data)
                elif piece.kind == "cut" and kind == "text":
                    deltas.append(CUT)
            if deltas:
                start = {"type": block, block: ""}
                yield (start | {"signature": ""} if kind == "think" else start), deltas
        for at, call in enumerate(reply.calls):
            start = {"type": "tool_use", "id": f"toolu_{reply.number}_{at}", "name": call.text}
            given = json.dumps(call.data)
            yield start | {"input": {}}, [{"type": "input_json_delta", "partial_json": given}]

    def frames(self, reply: Reply, model: str) -> Iterator[Frame]:
        """Yield a streamed reply."""
        message = self._message(reply, model, [], None)
        yield _sse({"type": "message_start", "message": message}, "message_start")
        for index, (start, deltas) in enumerate(self._blocks(reply)):
            begin = {"type": "content_block_start", "index": index, "content_block": start}
            yield _sse(begin, "content_block_start")
            for delta in deltas:
                if isinstance(delta, dict):
                    part = {"type": "content_block_delta", "index": index, "delta": delta}
                    yield _sse(part, "content_block_delta")
                else:
                    yield delta
            yield _sse({"type": "content_block_stop", "index": index}, "content_block_stop")
        end = {
            "type": "message_delta",
            "delta": {"stop_reason": self._stop(reply), "stop_sequence": None},
            "usage": {"output_tokens": reply.tokens_out},
        }
        yield _sse(end, "message_delta")
        yield _sse({"type": "message_stop"}, "message_stop")

    @staticmethod
    def _stop(reply: Reply) -> str:
        return "tool_use" if reply.calls else "end_turn"

    def _message(
        self, reply: Reply, model: str, content: list[Any], stop: str | None
    ) -> dict[str, Any]:
        usage = {"input_tokens": reply.tokens_in, "output_tokens": reply.tokens_out if stop else 1}
        return {
            "id": f"msg_{reply.number}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": content,
            "stop_reason": stop,
            "stop_sequence": None,
            "usage": usage,
        }

    def whole(self, reply: Reply, model: str) -> dict[str, Any]:
        """Return a reply that is not streamed."""
        content: list[Any] = []
        if reply.said("think"):
            content.append({"type": "thinking", "thinking": reply.said("think"), "signature": ""})
        if reply.said("text"):
            content.append({"type": "text", "text": reply.said("text")})
        for at, call in enumerate(reply.calls):
            use = {"type": "tool_use", "id": f"toolu_{reply.number}_{at}", "name": call.text}
            content.append(use | {"input": call.data})
        return self._message(reply, model, content, self._stop(reply))


class Chat(Wire):
    """``/v1/chat/completions``."""

    def asked(self, body: dict[str, Any], path: str) -> Asked:
        """Read a request."""
        kinds = {"user": "user", "tool": "tool"}
        said = [
            (kinds[message["role"]], _text(message.get("content")))
            for message in body.get("messages", ())
            if message.get("role") in kinds
        ]
        return Asked(*_last(said), bool(body.get("stream")))

    def frames(self, reply: Reply, model: str) -> Iterator[Frame]:
        """Yield a streamed reply."""

        def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            return _sse(self._head(reply, model, "chat.completion.chunk") | {"choices": [choice]})

        yield chunk({"role": "assistant", "content": ""})
        at = 0
        for piece in reply.pieces:
            if piece.kind == "text":
                yield chunk({"content": piece.text})
            elif piece.kind == "think":
                yield chunk({"reasoning_content": piece.text})
            elif piece.kind == "tool":
                yield chunk({"tool_calls": [{"index": at, **self._call(reply, at, piece)}]})
                at += 1
            else:
                yield CUT if piece.kind == "cut" else piece.data
        yield chunk({}, "tool_calls" if at else "stop")
        yield _sse(
            self._head(reply, model, "chat.completion.chunk")
            | {"choices": [], "usage": self._usage(reply)}
        )
        yield b"data: [DONE]\n\n"

    @staticmethod
    def _head(reply: Reply, model: str, kind: str) -> dict[str, Any]:
        return {"id": f"chatcmpl-{reply.number}", "object": kind, "created": 0, "model": model}

    @staticmethod
    def _call(reply: Reply, at: int, piece: Piece) -> dict[str, Any]:
        function = {"name": piece.text, "arguments": json.dumps(piece.data)}
        return {"id": f"call_{reply.number}_{at}", "type": "function", "function": function}

    @staticmethod
    def _usage(reply: Reply) -> dict[str, Any]:
        return {
            "prompt_tokens": reply.tokens_in,
            "completion_tokens": reply.tokens_out,
            "total_tokens": reply.tokens_in + reply.tokens_out,
        }

    def whole(self, reply: Reply, model: str) -> dict[str, Any]:
        """Return a reply that is not streamed."""
        message: dict[str, Any] = {"role": "assistant", "content": reply.said("text") or None}
        calls = [self._call(reply, at, piece) for at, piece in enumerate(reply.calls)]
        if calls:
            message["tool_calls"] = calls
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": "tool_calls" if calls else "stop",
        }
        head = self._head(reply, model, "chat.completion")
        return head | {"choices": [choice], "usage": self._usage(reply)}


class Responses(Wire):
    """``/v1/responses``."""

    def asked(self, body: dict[str, Any], path: str) -> Asked:
        """Read a request."""
        given = body.get("input", ())
        if isinstance(given, str):
            return Asked(given, 0, bool(body.get("stream")))
        said = []
        for item in given:
            if item.get("role") == "user":
                said.append(("user", _text(item.get("content"))))
            elif str(item.get("type", "")).endswith("_call_output"):
                said.append(("tool", ""))
        return Asked(*_last(said), bool(body.get("stream")))

    def _items(self, reply: Reply) -> Iterator[tuple[dict[str, Any], list[Any]]]:
        thought, text = reply.said("think"), reply.said("text")
        waits = [p.data if p.kind == "wait" else CUT for p in reply.pieces if p.kind in _PAUSES]
        if thought:
            summary = [{"type": "summary_text", "text": thought}]
            item = {"type": "reasoning", "id": f"rs_{reply.number}", "summary": summary}
            delta = {"type": "response.reasoning_summary_text.delta", "delta": thought}
            yield item, [delta | {"item_id": item["id"], "summary_index": 0}]
        if text or waits:
            content = [{"type": "output_text", "text": text, "annotations": []}]
            item = {"type": "message", "role": "assistant", "id": f"msg_{reply.number}"}
            yield item | {"content": content}, list(self._deltas(reply, str(item["id"])))
        for at, call in enumerate(reply.calls):
            item = {"type": "function_call", "id": f"fc_{reply.number}_{at}", "name": call.text}
            item["call_id"] = f"call_{reply.number}_{at}"
            item["arguments"] = json.dumps(call.data)
            yield item, []

    @staticmethod
    def _deltas(reply: Reply, item: str) -> Iterator[Any]:
        for piece in reply.pieces:
            if piece.kind == "text":
                delta = {"type": "response.output_text.delta", "delta": piece.text}
                yield delta | {"item_id": item, "content_index": 0}
            elif piece.kind in _PAUSES:
                yield piece.data if piece.kind == "wait" else CUT

    def frames(self, reply: Reply, model: str) -> Iterator[Frame]:
        """Yield a streamed reply."""
        head = self._head(reply, model, "in_progress")
        yield _sse({"type": "response.created", "response": head}, "response.created")
        done = []
        for index, (item, deltas) in enumerate(self._items(reply)):
            empty = {key: [] if key in {"content", "summary"} else item[key] for key in item}
            for kind, value in (("added", empty), ("done", item)):
                name = f"response.output_item.{kind}"
                if kind == "done":
                    for delta in deltas:
                        if isinstance(delta, dict):
                            yield _sse(delta | {"output_index": index}, delta["type"])
                        else:
                            yield delta
                yield _sse({"type": name, "output_index": index, "item": value}, name)
            done.append(item)
        end = self._head(reply, model, "completed") | {"output": done, "usage": _usage(reply)}
        yield _sse({"type": "response.completed", "response": end}, "response.completed")

    @staticmethod
    def _head(reply: Reply, model: str, status: str) -> dict[str, Any]:
        head = {"id": f"resp_{reply.number}", "object": "response", "created_at": 0}
        return head | {"model": model, "status": status, "output": []}

    def whole(self, reply: Reply, model: str) -> dict[str, Any]:
        """Return a reply that is not streamed."""
        items = [item for item, _ in self._items(reply)]
        head = self._head(reply, model, "completed")
        return head | {"output": items, "usage": _usage(reply)}


_PAUSES = {"wait", "cut"}


def _usage(reply: Reply) -> dict[str, Any]:
    return {
        "input_tokens": reply.tokens_in,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": reply.tokens_out,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": reply.tokens_in + reply.tokens_out,
    }


class Gemini(Wire):
    """``/v1beta/models/NAME:generateContent`` and ``:streamGenerateContent``."""

    def asked(self, body: dict[str, Any], path: str) -> Asked:
        """Read a request."""
        said = []
        for content in body.get("contents", ()):
            parts = content.get("parts", ())
            answers = [part for part in parts if "functionResponse" in part]
            if content.get("role", "user") == "user" and not answers:
                said.append(("user", _text(parts)))
            said += [("tool", "")] * len(answers)
        return Asked(*_last(said), ":streamGenerateContent" in path)

    @staticmethod
    def _part(piece: Piece) -> dict[str, Any]:
        if piece.kind == "tool":
            return {"functionCall": {"name": piece.text, "args": piece.data}}
        thought = {"thought": True} if piece.kind == "think" else {}
        return {"text": piece.text, **thought}

    def frames(self, reply: Reply, model: str) -> Iterator[Frame]:
        """Yield a streamed reply."""
        for piece in reply.pieces:
            if piece.kind in _PAUSES:
                yield piece.data if piece.kind == "wait" else CUT
            else:
                yield _sse(self._answer(reply, model, [self._part(piece)], None))
        yield _sse(self._answer(reply, model, [{"text": ""}], "STOP"))

    @staticmethod
    def _answer(reply: Reply, model: str, parts: list[Any], finish: str | None) -> dict[str, Any]:
        candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": 0}
        if finish is not None:
            candidate["finishReason"] = finish
        usage = {
            "promptTokenCount": reply.tokens_in,
            "candidatesTokenCount": reply.tokens_out,
            "totalTokenCount": reply.tokens_in + reply.tokens_out,
        }
        return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": model}

    def whole(self, reply: Reply, model: str) -> dict[str, Any]:
        """Return a reply that is not streamed."""
        parts = [self._part(piece) for piece in reply.pieces if piece.kind not in _PAUSES]
        return self._answer(reply, model, parts or [{"text": ""}], "STOP")

    def error(self, status: int) -> dict[str, Any]:
        """Return the body of an error."""
        return {"error": {"code": status, "message": f"as scripted: {status}", "status": "FAILED"}}
