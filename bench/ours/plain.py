"""A bare echo server: Starlette on uvicorn, and nothing of the product.

The body is decoded, the capability looked up, the text echoed, the reply encoded. It shows what the
HTTP stack alone can do here. Prints the URL once it answers.
"""

from __future__ import annotations

import itertools
import socket
import sys
from datetime import UTC, datetime
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


class Asked(msgspec.Struct):
    """The body of ``POST /v1/orchestrate``."""

    session_id: str
    capability: str
    parameters: dict[str, Any]


_decode = msgspec.json.Decoder(Asked).decode
_encode = msgspec.json.Encoder().encode
_count = itertools.count()


async def echo(text: str) -> str:
    """Answer what was asked."""
    return text


CAPABILITIES = {"echo": echo}


async def orchestrate(request: Request) -> Response:
    """Answer like the product, without keeping anything."""
    asked = _decode(await request.body())
    data = await CAPABILITIES[asked.capability](**asked.parameters)
    number = f"{next(_count):026d}"
    reply = {
        "success": True,
        "data": data,
        "contract_id": number,
        "agent_id": "echo",
        "execution_id": number,
        "timestamp": datetime.now(UTC).isoformat(),
    }
    return Response(_encode(reply), media_type="application/json")


app = Starlette(routes=[Route("/v1/orchestrate", orchestrate, methods=["POST"])])


def main() -> None:
    """Serve on a free port."""
    # With its protocol named: asyncio turns Nagle's delay off only for sockets that say TCP.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(2048)
    sys.stdout.write(f"http://127.0.0.1:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    # The same event loop as the product's server, so that only the code differs.
    config = uvicorn.Config(
        app, loop="uvloop", log_level="warning", access_log=False, lifespan="off"
    )
    uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    main()
