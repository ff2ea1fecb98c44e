"""Scripts: what a fake model, or a fake agent, is to do, written into the prompt itself.

``[[VERB ARGUMENTS]]``, any number of them; other text is ignored. A prompt without any has its own
text said back. ::

    [[say hi]]  [[think hm]]  [[tool Bash {"command": "ls"}]]  [[slow 30 0.1]]  [[usage 10 2]]
    [[hang 60]]  [[http 529]]  [[httponce 529]]  [[cut]]

What the verbs mean beyond that is said by who performs them: ``model_server``, ``coding_agent``.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

_STEP = re.compile(r"\[\[(\w[\w-]*)((?:[^\[\]]|\[(?!\[)|\](?!\]))*)\]\]", re.DOTALL)


class Step(NamedTuple):
    """One step of a script; ``rest`` is what stands after the verb."""

    verb: str
    rest: str = ""

    @property
    def words(self) -> list[str]:
        """The arguments."""
        return self.rest.split()

    def number(self, place: int = 0, default: float = 0.0) -> float:
        """Return an argument that is a number."""
        return float(self.words[place]) if len(self.words) > place else default

    def call(self) -> tuple[str, dict[str, Any]]:
        """Return the name and the arguments of a tool."""
        name, _, given = self.rest.partition(" ")
        return name, json.loads(given) if given.strip() else {}


def has_script(text: str) -> bool:
    """Say whether there is a step in ``text``."""
    return _STEP.search(text) is not None


def parse(text: str) -> list[Step]:
    """Return the steps that ``text`` holds."""
    steps = [Step(verb, rest.strip()) for verb, rest in _STEP.findall(text)]
    return steps or [Step("say", text.strip())]


def turn(steps: list[Step], number: int) -> list[Step]:
    """Return a model's reply number ``number`` (from 0): a tool ends each but the last one."""
    replies: list[list[Step]] = [[]]
    for step in steps:
        replies[-1].append(step)
        if step.verb == "tool":
            replies.append([])
    return replies[number] if number < len(replies) else []
