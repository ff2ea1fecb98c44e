"""The MCP Python SDK: a tool call over stdio, 64 in flight on one session.

Fair settings: its low-level server (no schema is made or checked there; with ``MCPServer``, which
most programs use, each call costs more), logging down to errors, an asynchronous tool that returns
its text as it is, uvloop in neither process (the SDK sets none).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from importlib.metadata import version
from typing import Any

from bench.environment import CHECKOUT
from bench.load import TEXT, Load, Run, arguments, closed_loop, report


async def serve_plain() -> None:
    """Serve the tool by the low-level server."""
    from mcp import stdio_server, types  # type: ignore[import-not-found]  # noqa: PLC0415
    from mcp.server import Server  # type: ignore[import-not-found]  # noqa: PLC0415

    schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    tool = types.Tool(name="echo", description="Echo.", input_schema=schema)

    async def tools(*_: Any) -> Any:
        return types.ListToolsResult(tools=[tool])

    async def call(_: Any, asked: Any) -> Any:
        said = types.TextContent(type="text", text=asked.arguments["text"])
        return types.CallToolResult(content=[said])

    server = Server("bench", on_list_tools=tools, on_call_tool=call)
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


def serve_usual() -> None:
    """Serve the tool by the server that most programs use."""
    from mcp.server import MCPServer  # noqa: PLC0415

    server = MCPServer("bench", log_level="ERROR")

    async def echo(text: str) -> str:
        """Echo."""
        return text

    server.tool()(echo)
    server.run()


async def measure(run: Run) -> Load:
    """Run the loop."""
    from mcp import ClientSession, StdioServerParameters, stdio_client  # noqa: PLC0415

    child = StdioServerParameters(
        command=sys.executable,
        args=["-m", "bench.peers.mcp_stdio", "--serve", run.options.server],
        cwd=CHECKOUT,
    )
    async with stdio_client(child) as (read, write), ClientSession(read, write) as session:
        await session.initialize()

        async def call(_: int) -> None:
            answer = await session.call_tool("echo", {"text": TEXT})
            assert answer.content[0].text == TEXT

        return await closed_loop(call, callers=run.callers, warm=run.warm, seconds=run.seconds)


def main() -> None:
    """Measure and report; or be the server."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--server", choices=("plain", "usual"), default="plain")
        parser.add_argument("--serve", choices=("plain", "usual"), help="be the server")

    run = arguments("Tool calls of the MCP Python SDK over stdio", more)
    logging.basicConfig(level=logging.ERROR)
    if run.options.serve == "plain":
        asyncio.run(serve_plain())
    elif run.options.serve == "usual":
        serve_usual()
    else:
        line = asyncio.run(measure(run)).line()
        report({**line, "version": version("mcp")})


if __name__ == "__main__":
    main()
