"""Keeping what an agent was given as a credential out of what is recorded of it.

What a CLI says about itself (errors, warnings) is shown without any value of its ``environment``;
what it works on (text, tools, results) without those whose name is a credential's: there, any other
value may be what the task is about.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

from retinue.domain.event import EventData, EventType
from retinue.errors import RetinueError
from retinue.process.log import forms

_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|AUTH|COOKIE", re.IGNORECASE)
LEAST_CREDENTIAL = 8


class Secrecy:
    """What is hidden of one agent; ``mask`` hides every value of its environment."""

    def __init__(self, environment: Mapping[str, str], mask: Callable[[str], str]) -> None:
        self._mask = mask
        self.credentials = forms(
            value
            for name, value in environment.items()
            if _NAME.search(name) and len(value) >= LEAST_CREDENTIAL
        )

    def of_work(self, text: str) -> str:
        """Return text of its work without credentials."""
        for value in self.credentials:
            text = text.replace(value, "***")
        return text

    def event(self, event: EventData) -> EventData:
        """Return an event as it may be recorded."""
        if event.type is EventType.CONTENT_CHUNK:
            return event  # its text was masked before it was cut into pieces
        mask = self._mask if event.type is EventType.LOG else self.of_work
        if mask == self.of_work and not self.credentials:
            return event
        return EventData(event.type, masked(event.data, mask), event.cursor)

    def error(self, error: RetinueError) -> RetinueError:
        """Return an error as it may be recorded."""
        message, details = self._mask(error.message), masked(error.details, self._mask)
        if (message, details) == (error.message, error.details):
            return error
        safe = copy.copy(error)
        safe.args, safe.message, safe.details = (message,), message, details
        return safe


def masked(value: Any, mask: Callable[[str], str]) -> Any:
    """Return a JSON value with all its texts masked."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {masked(key, mask): masked(item, mask) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(item, mask) for item in value]
    return value
