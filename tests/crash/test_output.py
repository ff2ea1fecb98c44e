"""Whoever reads a server's output sees its end, though agents of it go on."""

import asyncio
import signal
import sys
from pathlib import Path

import httpx
from tests.crash.test_kept import Place, eventually, instances, submit
from tests.process.rig import alive, until

from retinue.storage.lockfile import read_holder


async def test_the_output_of_a_server_ends_with_it(tmp_path: Path) -> None:
    place = Place(tmp_path)
    program = (sys.executable, "-m", "retinue", "serve")
    out = asyncio.subprocess.PIPE
    server = await asyncio.create_subprocess_exec(*program, cwd=tmp_path, stdout=out, stderr=out)
    lock = tmp_path / ".retinue" / "retinue.lock"

    def url() -> str | None:
        holder = read_holder(lock)
        return holder.url if holder is not None and holder.pid == server.pid else None

    try:
        await until(url, 30)
        async with httpx.AsyncClient(base_url=url() or "", timeout=30, trust_env=False) as client:
            await submit(client, "long")
            (i,) = await eventually(
                lambda: instances(client), lambda found: found and found[0]["pid"]
            )
        server.send_signal(signal.SIGTERM)
        said, _ = await asyncio.wait_for(server.communicate(), 20)  # both pipes to their end
        assert b"Retinue" in said
        assert alive(i["pid"])
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()
        # What is kept goes on; a server that does not know its agent any more ends it.
        place.agents = [{"driver": "command", "agent_id": "other", "command": ["true"]}]
        place.configure()
        await (await place.start()).aclose()
        assert place.server is not None
        await place.server.end(signal.SIGTERM)
    assert not alive(i["pid"])
