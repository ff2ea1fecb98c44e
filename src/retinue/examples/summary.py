"""An agent that streams: an extractive summary of a text, sentence by sentence."""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from typing import Any

from retinue.agent import Agent, AgentCapability, current

_BETWEEN = re.compile(r"(?<=[.!?])\s+|\n+")
_WORD = re.compile(r"\w{4,}")
_MOST_TEXT = 500_000

PARAMETERS = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "maxLength": _MOST_TEXT, "description": "what to summarise"},
        "sentences": {
            "type": "integer",
            "minimum": 1,
            "maximum": 100,
            "default": 3,
            "description": "how many sentences to keep",
        },
        "pause_ms": {
            "type": "integer",
            "minimum": 0,
            "maximum": 60_000,
            "default": 0,
            "description": "milliseconds to wait after each sentence, so that one can watch",
        },
    },
    "required": ["text"],
    "additionalProperties": False,
}


class SummaryAgent(Agent):
    """Keeps the sentences whose words the text uses most, in their order, and streams them."""

    def __init__(self) -> None:
        super().__init__(
            agent_id="agent_summary_001",
            name="Summary Agent",
            description="Summarises text by its most telling sentences",
        )

    async def execute(self, task: dict[str, Any]) -> dict[str, Any]:
        """Stream the summary and return it."""
        parameters = task["parameters"]
        sentences = split(parameters["text"])
        kept = telling(sentences, parameters.get("sentences", 3))
        context = current()
        for place, sentence in enumerate(kept):
            context.text(sentence if place == 0 else f" {sentence}")
            await asyncio.sleep(parameters.get("pause_ms", 0) / 1000)
        data = {"summary": " ".join(kept), "sentences": len(kept), "of": len(sentences)}
        return {"success": True, "data": data}

    def get_capabilities(self) -> list[AgentCapability]:
        """Return ``summarize_text``."""
        return [AgentCapability("summarize_text", "Summarise a text, streamed", PARAMETERS)]


def split(text: str) -> list[str]:
    """Return the sentences of a text."""
    found = (" ".join(piece.split()) for piece in _BETWEEN.split(text))
    return [sentence for sentence in found if any(c.isalnum() for c in sentence)]


def telling(sentences: list[str], count: int) -> list[str]:
    """Return the ``count`` sentences that say most of the whole, in the text's order."""
    words = [_WORD.findall(sentence.lower()) for sentence in sentences]
    frequency = Counter(word for sentence in words for word in set(sentence))

    def weight(place: int) -> float:
        # By the square root of its length: neither a long-winded sentence nor a heading wins.
        common = sum(frequency[word] for word in set(words[place]))
        return common / math.sqrt(1 + len(words[place]))

    best = sorted(range(len(sentences)), key=lambda place: (-weight(place), place))[:count]
    return [sentences[place] for place in sorted(best)]
