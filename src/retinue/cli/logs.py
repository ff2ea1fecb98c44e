"""Log lines: for a person, or one JSON object per line for a machine. They go to stderr.

Whatever is logged, a JSON line parses, and neither form holds a secret: what looks like a
credential is masked in the message, in the exception and in every extra field.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

from retinue.agent import current

FIELDS = ("agent_id", "execution_id", "session_id", "trace_id", "span_id")
"""What a log call gives in ``extra``, or an agent's by where it runs; null where neither does."""
_MOST_TEXT = 32_768
_MASKS = (
    (re.compile(r"\brtn_[A-Za-z0-9_-]{4,}"), "rtn_***"),
    (re.compile(r"\bsk-[A-Za-z0-9_-]{4,}"), "sk-***"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{4,}"), r"\1 ***"),
    (
        re.compile(
            r"(?i)(\b(?:proxy-)?authorization\b['\"]?\s*[:=,]\s*)(?:b?'[^']*'|b?\"[^\"]*\"|[^\s,;]+)"
        ),
        r"\1***",
    ),
    (
        re.compile(
            r"(?i)(\b[\w-]{0,40}(?:api[_-]?key|password|passwd|secret|access[_-]?token)['\"]?\s*[:=]\s*)"
            r"(?:'[^']*'|\"[^\"]*\"|[^\s,;}]+)"
        ),
        r"\1***",
    ),
    (re.compile(r"(://[^/\s:@]*):[^/\s@]+@"), r"\1:***@"),
)


def masked(text: str) -> str:
    """Return ``text`` with everything that looks like a credential masked."""
    for pattern, instead in _MASKS:
        text = pattern.sub(instead, text)
    return text


def configure(level: str, form: str, stream: TextIO | None = None) -> None:
    """Send every logger's records to ``stream`` (stderr) in that form, from ``level`` on.

    In the JSON form, uncaught exceptions and warnings become log lines, too: nothing else of
    ours is written there.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else Lines())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)
    logging.raiseExceptions = False
    if form == "json":
        sys.excepthook = _uncaught
        threading.excepthook = _uncaught_in_thread
        sys.unraisablehook = _unraisable


class JsonLines(logging.Formatter):
    """One JSON object per record."""

    json_lines = True

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _clean(_message(record)),
        }
        line |= _fields(record)
        if (failure := _failure(record)) is not None:
            line["exception"] = _clean(failure)
        return json.dumps(line)


class Lines(logging.Formatter):
    """Time, level, logger, message; an exception on the lines below."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        where = "".join(f" {name}={value}" for name, value in _fields(record).items() if value)
        head = f"{_time(record)} {record.levelname.lower():<7} {record.name}: "
        line = _clean(head + _message(record) + where)
        failure = _failure(record)
        return line if failure is None else f"{line}\n{_clean(failure)}"


def _time(record: logging.LogRecord) -> str:
    when = datetime.fromtimestamp(record.created, UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, str | None]:
    try:
        around = current()
    except LookupError:
        around = None
    found: dict[str, str | None] = {}
    for name in FIELDS:
        value = getattr(record, name, None) or getattr(around, name, None)
        found[name] = _clean(str(value)) if value is not None else None
    return found


def _message(record: logging.LogRecord) -> str:
    message = record.msg
    try:
        if record.args:
            message = record.getMessage()
        return message if isinstance(message, str) else str(message)
    except Exception as error:  # the caller's own mistake must not cost the line
        return f"{record.msg!r} with {record.args!r} ({type(error).__name__}: {error})"


def _failure(record: logging.LogRecord) -> str | None:
    info = record.exc_info
    if not info or info[0] is None:
        return None
    return "".join(traceback.format_exception(*info)).rstrip()


def _clean(text: str) -> str:
    text = masked(text[:_MOST_TEXT])
    # A lone surrogate is no text to a strict reader of JSON, or to a terminal.
    return text.encode("utf-8", "backslashreplace").decode()


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("retinue").critical("uncaught exception", exc_info=(kind, error, trace))


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        _uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def _unraisable(args: sys.UnraisableHookArgs) -> None:
    error = args.exc_value
    logging.getLogger("retinue").error(
        "exception ignored in %r",
        args.object,
        exc_info=(args.exc_type, error, args.exc_traceback) if error is not None else None,
    )
