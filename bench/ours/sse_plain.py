"""A bare server of event streams: Starlette on uvicorn, and nothing of the product.

An event is encoded once; each reader is a place in the list, and gets what it has not seen as one
chunk. Speaks as much of the product's API as ``bench.ours.sse`` asks for.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

_encode = msgspec.json.Encoder().encode


class Stream:
    """One execution's events, encoded."""

    def __init__(self, name: str) -> None:
        self.id = f"{int.from_bytes(name.encode()) % 10**26:026d}"
        self.frames: list[bytes] = []
        self.ended = False
        self.go = asyncio.Event()
        self._bell = asyncio.get_running_loop().create_future()

    def add(self, kind: str, **data: object) -> None:
        """Add an event."""
        event = {
            "executionId": self.id,
            "eventType": kind,
            "sequence": len(self.frames) + 1,
            "timestamp": datetime.now(UTC).isoformat(),
            **data,
        }
        self.frames.append(b"id: %d\ndata: %b\n\n" % (len(self.frames) + 1, _encode(event)))
        self.ended = kind == "completed"
        bell, self._bell = self._bell, asyncio.get_running_loop().create_future()
        bell.set_result(None)

    async def emit(self, count: int) -> None:
        """Make ``count`` events once told to begin, letting readers in between."""
        self.add("progress", percent=0, message="begun")
        await self.go.wait()
        for number in range(count):
            self.add("progress", percent=1, message=f"step {number}")
            if number % 64 == 63:
                await asyncio.sleep(0)
        self.add("completed")

    async def read(self) -> AsyncIterator[bytes]:
        """Yield all there is, then all that comes."""
        place = 0
        while True:
            frames = self.frames[place:]
            if frames:
                place += len(frames)
                yield b"".join(frames)
            elif self.ended:
                return
            else:
                await asyncio.wait({self._bell})


streams: dict[str, Stream] = {}
tasks: set[asyncio.Task[None]] = set()


async def submit(request: Request) -> Response:
    """Begin a stream."""
    asked = await request.json()
    stream = Stream(asked["parameters"]["name"])
    streams[asked["parameters"]["name"]] = streams[stream.id] = stream
    tasks.add(asyncio.create_task(stream.emit(asked["parameters"]["count"])))
    return Response(_encode({"execution_id": stream.id}), 202)


async def begin(request: Request) -> Response:
    """Let a stream go on."""
    streams[(await request.json())["parameters"]["name"]].go.set()
    return Response(b"{}")


async def events(request: Request) -> Response:
    """Stream."""
    stream = streams[request.path_params["id"]]
    return StreamingResponse(stream.read(), media_type="text/event-stream")


app = Starlette(
    routes=[
        Route("/v1/executions", submit, methods=["POST"]),
        Route("/v1/orchestrate", begin, methods=["POST"]),
        Route("/v1/executions/{id}/events", events),
    ]
)


def main() -> None:
    """Serve on a free port."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(2048)
    sys.stdout.write(f"http://127.0.0.1:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    config = uvicorn.Config(
        app, loop="uvloop", log_level="warning", access_log=False, lifespan="off"
    )
    uvicorn.Server(config).run([listener])


if __name__ == "__main__":
    main()
