"""Output in a file: read as lines or pieces, from the beginning, with the place of each."""

import asyncio
from pathlib import Path

import pytest

from retinue.drivers.command.kept import Place, Progress
from retinue.process.reading import Bounds
from retinue.process.spool import SpoolReader

LINES = Bounds(line_bytes=10)


async def everything(reader: SpoolReader) -> list[tuple[bytes, int]]:
    found = []
    while (item := await reader.next()) is not None:
        found.append((item, reader.position))
    return found


async def test_lines_have_places_and_long_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "stdout"
    path.write_bytes(b"one\n" + b"x" * 50 + b"\ntwo\n\xff\n" + b"y" * 20 + b"\nend")
    reader = SpoolReader(path, LINES)
    reader.finish()
    assert await everything(reader) == [
        (b"one\n", 4),
        (b"two\n", 59),
        (b"\xff\n", 61),
        (b"end", 85),
    ]
    assert (reader.counts.lines, reader.counts.oversize_lines) == (4, 2)
    assert path.stat().st_size == 85
    assert reader.ended
    reader.close()


async def test_what_comes_later_is_read_when_it_comes(tmp_path: Path) -> None:
    path = tmp_path / "stdout"
    path.write_bytes(b"a\nhal")
    reader = SpoolReader(path, LINES)
    assert await reader.next() == b"a\n"
    assert reader.take() is None
    waiting = asyncio.ensure_future(reader.next())
    with path.open("ab") as file:
        file.write(b"f\nrest")
    assert await waiting == b"half\n"
    reader.finish()
    assert [item for item, _ in await everything(reader)] == [b"rest"]
    assert reader.tail == b"a\nhalf\nrest"
    reader.close()


async def test_no_piece_reaches_across_the_seam(tmp_path: Path) -> None:
    path = tmp_path / "stdout"
    path.write_bytes(b"0123456789")
    reader = SpoolReader(path, Bounds(lines=False), seam=4)
    reader.finish()
    assert await everything(reader) == [(b"0123", 4), (b"456789", 10)]
    reader.close()


async def test_stderr_is_only_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "stderr"
    path.write_bytes(b"x" * 10_000 + b"last words")
    reader = SpoolReader(path, Bounds(lines=False, most=0))
    assert reader.take() is None
    reader.finish()
    assert await reader.next() is None
    assert reader.tail.endswith(b"last words")
    reader.close()


PIECES = [(1, 10), (0, 20), (3, 30), (1, 40), (2, 40), (1, 40)]
"""How many events each piece of an output made, and where it ended; the last are of its rest."""


def cursors(behind: Place) -> list[str | None]:
    progress = Progress("i", behind)
    return [c for count, offset in PIECES for c in progress.cursors(count, offset)]


def test_from_every_place_exactly_the_rest_comes() -> None:
    whole = cursors(Place())
    assert len(set(whole)) == len(whole) == 8
    assert None not in whole
    for taken, cursor in enumerate(whole, 1):
        again = cursors(Place.read(cursor, "i"))
        assert again == [None] * taken + whole[taken:]


@pytest.mark.parametrize("cursor", [None, "other:30+0"])
def test_a_cursor_of_another_instance_means_nothing(cursor: str | None) -> None:
    assert Place.read(cursor, "i") == Place(0, 0)
