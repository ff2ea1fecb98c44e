"""What is said of a PostgreSQL database that is not there."""

from __future__ import annotations

import pytest

from retinue.errors import StoreMissing
from retinue.storage.link import connect, creation
from retinue.testing.servers import PostgresServer


@pytest.mark.parametrize(
    ("dsn", "command"),
    [
        ("postgresql://ann:secret@db.example:5433/ledger", "-h db.example -p 5433 -U ann ledger"),
        ("postgresql://db.example/ledger", "-h db.example ledger"),
        ("postgresql:///ledger", "ledger"),
        ("postgresql://a%40b@[::1]:5433/two%20words", "-h ::1 -p 5433 -U a@b 'two words'"),
        ("postgresql://[::1]/ledger", "-h ::1 ledger"),
        (
            "postgresql:///ledger?host=/run/pg&port=5433&user=ann",
            "-h /run/pg -p 5433 -U ann ledger",
        ),
        ("postgresql://one:1,two:2/ledger", "-h one -p 1 ledger"),
        ("postgresql://h/ignored?dbname=ledger&password=secret", "-h h ledger"),
        ("postgresql://ann@h", "-h h -U ann"),
    ],
)
def test_the_command_that_creates_it_names_what_the_address_names(dsn: str, command: str) -> None:
    assert creation(dsn) == f"createdb {command}"


async def test_a_database_that_is_not_there_is_no_server_that_is_away(
    postgres_server: PostgresServer,
) -> None:
    with pytest.raises(StoreMissing) as caught:
        await connect(postgres_server.url("two words"))
    assert (
        caught.value.message
        == f"there is no database 'two words' at 127.0.0.1:{postgres_server.port}"
    )
    assert caught.value.details["command"].endswith("-U postgres 'two words'")
    assert not caught.value.retryable
