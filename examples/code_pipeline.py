"""Look through code: three agents in one session, and what is left of it in memory.

python examples/code_pipeline.py [FILE.py]

Without a file a small sample is looked through. The source is parsed, never run. A step that fails
ends the pipeline; the memory block tells of it, too.
"""

from __future__ import annotations

import ast
import asyncio
import sys
from pathlib import Path
from typing import Any

from retinue import Agent, AgentCapability, Orchestrator, Runtime

SESSION = "code_001"
STEPS = ("analyze_code", "security_scan", "generate_docs")
SOURCE = {"name": "string", "source": "string"}
SAMPLE = '''"""Accounts of a small shop."""

import pickle
import subprocess

PASSWORD = "hunter2"


class Till:
    """Holds the day's takings."""

    def load(self, raw):
        """Read the takings of yesterday."""
        return pickle.loads(raw)

    def total(self, rows):
        return sum(eval(row) for row in rows if row)


def print_receipt(printer: str, text: str) -> int:
    """Send a receipt to a printer."""
    return subprocess.call(f"echo {text} > {printer}", shell=True)
'''


class CodeAnalysisAgent(Agent):
    """Counts and measures."""

    def __init__(self) -> None:
        super().__init__("agent_code_001", "Code Analysis Agent", "Measures Python source")

    def get_capabilities(self) -> list[AgentCapability]:
        """Return ``analyze_code``."""
        return [AgentCapability("analyze_code", "Measure Python source", SOURCE)]

    async def execute(self, task: dict[str, Any]) -> dict[str, Any]:
        """Measure a module."""
        name, source = task["parameters"]["name"], task["parameters"]["source"]
        try:
            tree = ast.parse(source)
        except SyntaxError as error:
            return {"success": False, "error": f"{name}:{error.lineno}: {error.msg}"}
        functions = [node for node in ast.walk(tree) if isinstance(node, _FUNCTIONS)]
        measured = sorted(((_branches(f) + 1, f.name) for f in functions), reverse=True)
        data = {
            "lines": len(source.splitlines()),
            "classes": sum(isinstance(node, ast.ClassDef) for node in ast.walk(tree)),
            "functions": len(functions),
            "without_docstring": sorted(f.name for f in functions if not ast.get_docstring(f)),
            "most_complex": [{"name": n, "complexity": c} for c, n in measured[:3]],
            "imports": sorted(_imports(tree)),
        }
        return {"success": True, "data": data}


class SecurityScanAgent(Agent):
    """Finds what is dangerous."""

    def __init__(self) -> None:
        super().__init__("agent_security_001", "Security Scan Agent", "Finds dangerous calls")

    def get_capabilities(self) -> list[AgentCapability]:
        """Return ``security_scan``."""
        return [AgentCapability("security_scan", "Find dangerous calls and secrets", SOURCE)]

    async def execute(self, task: dict[str, Any]) -> dict[str, Any]:
        """Scan a module."""
        tree = ast.parse(task["parameters"]["source"])
        findings = []
        for node in ast.walk(tree):
            for severity, what in _dangers(node):
                line = getattr(node, "lineno", 0)
                findings.append({"line": line, "severity": severity, "what": what})
        findings.sort(key=lambda found: (found["line"], found["what"]))
        return {"success": True, "data": {"findings": findings, "count": len(findings)}}


class DocumentationAgent(Agent):
    """Writes down what is there."""

    def __init__(self) -> None:
        super().__init__("agent_docs_001", "Documentation Agent", "Writes reference pages")

    def get_capabilities(self) -> list[AgentCapability]:
        """Return ``generate_docs``."""
        return [AgentCapability("generate_docs", "Write a reference page in Markdown", SOURCE)]

    async def execute(self, task: dict[str, Any]) -> dict[str, Any]:
        """Write a module's page."""
        tree = ast.parse(task["parameters"]["source"])
        lines = [f"# {task['parameters']['name']}", "", ast.get_docstring(tree) or "", ""]
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                lines += [f"## class {node.name}", "", ast.get_docstring(node) or "", ""]
                methods = [child for child in node.body if isinstance(child, _FUNCTIONS)]
                lines += [f"- `{_signature(m)}` {_first(m)}".rstrip() for m in methods]
                lines.append("")
            elif isinstance(node, _FUNCTIONS):
                lines += [f"## {_signature(node)}", "", ast.get_docstring(node) or "", ""]
        return {"success": True, "data": {"markdown": "\n".join(lines).rstrip() + "\n"}}


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_CHOICES = (ast.If, ast.For, ast.While, ast.Try, ast.IfExp, ast.BoolOp, ast.comprehension)
_CALLS = {
    "eval": ("high", "eval runs whatever it is given"),
    "exec": ("high", "exec runs whatever it is given"),
    "pickle.load": ("high", "unpickling runs code from the data"),
    "pickle.loads": ("high", "unpickling runs code from the data"),
    "os.system": ("medium", "os.system goes through a shell"),
    "tempfile.mktemp": ("medium", "mktemp names a file that another may make first"),
}
_SECRETS = ("password", "secret", "token", "api_key")


def _branches(function: ast.AST) -> int:
    return sum(isinstance(node, _CHOICES) for node in ast.walk(function))


def _imports(tree: ast.Module) -> set[str]:
    found = {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    return found | {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}


def _dangers(node: ast.AST) -> list[tuple[str, str]]:
    """Return how bad a node is, and why."""
    found = []
    if isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        if called in _CALLS:
            found.append(_CALLS[called])
        for keyword in node.keywords:
            set_to = ast.unparse(keyword.value)
            if (keyword.arg, set_to) == ("shell", "True"):
                found.append(("high", f"{called} goes through a shell"))
            if (keyword.arg, set_to) == ("verify", "False"):
                found.append(("medium", f"{called} checks no certificate"))
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
        for target in node.targets:
            name = ast.unparse(target)
            secret = any(word in name.lower() for word in _SECRETS)
            if secret and isinstance(node.value.value, str) and node.value.value:
                found.append(("high", f"{name} is written into the source"))
    return found


def _signature(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    answer = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"{function.name}({ast.unparse(function.args)}){answer}"


def _first(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return (ast.get_docstring(function) or "").partition("\n")[0]


async def pipeline(orchestrator: Orchestrator, name: str, source: str) -> list[dict[str, Any]]:
    """Have every step done, one after the other, up to the first that fails."""
    replies = []
    for capability in STEPS:
        task = {"capability": capability, "parameters": {"name": name, "source": source}}
        replies.append(await orchestrator.orchestrate(SESSION, task))
        if not replies[-1]["success"]:
            break
    return replies


async def main() -> int:
    """Look through one module and show what was found."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    name, source = (path.name, path.read_text()) if path else ("shop.py", SAMPLE)
    async with Runtime() as orchestrator:
        for agent in (CodeAnalysisAgent(), SecurityScanAgent(), DocumentationAgent()):
            orchestrator.register_agent(agent)
        replies = await pipeline(orchestrator, name, source)
        compressed = await orchestrator.compress_session(SESSION, f"Look through {name}")
    show(name, [reply["data"] for reply in replies if reply["success"]])
    print(f"memory: {compressed['memory_block']['summary']}")
    failed = [reply["error"] for reply in replies if not reply["success"]]
    if failed:
        print(f"stopped: {failed[0]}", file=sys.stderr)
    return 1 if failed else 0


def show(name: str, data: list[dict[str, Any]]) -> None:
    """Print what the steps that were done have found."""
    if data:
        counts = ", ".join(f"{data[0][what]} {what}" for what in ("lines", "classes", "functions"))
        print(f"{name}: {counts}")
    if len(data) > 1:
        for found in data[1]["findings"]:
            print(f"  line {found['line']}: {found['severity']}: {found['what']}")
    if len(data) == len(STEPS):
        print(data[2]["markdown"])


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
