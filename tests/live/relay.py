"""A way from a network of its own to one port outside: by a socket that is a file.

Run as a program, ``relay.py SOCKET PORT COMMAND …`` listens on that port of 127.0.0.1, passes what
comes on to the file, and becomes the command. ``outside`` is the other end.
"""

import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def pass_on(source: socket.socket, sink: socket.socket) -> None:
    """Send what comes from one to the other, and its end."""
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def join(near: socket.socket, far: socket.socket) -> None:
    """Pass on both ways until both have ended."""
    with near, far:
        back = threading.Thread(target=pass_on, args=(far, near), daemon=True)
        back.start()
        pass_on(near, far)
        back.join()


def relay(server: socket.socket, connect: Callable[[], socket.socket]) -> None:
    """Pass on every connection, until the server is closed."""
    while True:
        try:
            near = server.accept()[0]
        except OSError:
            return
        threading.Thread(target=join, args=(near, connect()), daemon=True).start()


def dial(path: str) -> socket.socket:
    """Connect to a socket that is a file."""
    found = socket.socket(socket.AF_UNIX)
    found.connect(path)
    return found


@contextmanager
def outside(path: Path, port: int) -> Iterator[None]:
    """Pass what comes by the file on to a port of this machine."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        to = ("127.0.0.1", port)
        thread = threading.Thread(target=relay, args=(server, lambda: socket.create_connection(to)))
        thread.start()
        yield
        server.shutdown(socket.SHUT_RDWR)  # wakes who waits for another one
        thread.join()


def main() -> None:
    """Listen in a process of its own, then become the command."""
    path, port, *command = sys.argv[1:]
    with socket.create_server(("127.0.0.1", int(port))) as server:
        if os.fork():
            server.close()
            os.execv(command[0], command)
        quiet = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):  # the command's own: their end is to be heard of
            os.dup2(quiet, fd)
        relay(server, lambda: dial(path))


if __name__ == "__main__":
    main()
