"""API keys, for admins: made (the secret is shown this once), listed, revoked."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from starlette.responses import Response

from retinue.domain.agent import AGENT_ID_PATTERN
from retinue.domain.ids import iso
from retinue.domain.principal import ApiKey, Role
from retinue.server.records import Time, Ulid, when
from retinue.server.routing import Call, Operation, encode

Name = Annotated[str, msgspec.Meta(pattern=f"^{AGENT_ID_PATTERN}$")]


class KeyBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key to make. `owner` scopes all it reads and writes; it is the caller's unless given."""

    EXAMPLE: ClassVar[dict[str, Any]] = {"name": "ci", "role": "operator"}

    name: Name
    role: Role
    owner: Name | None = None


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A key, without its secret."""

    key_id: Ulid
    name: str
    role: Role
    owner: str
    created_at: Time
    revoked_at: Time | None


class NewKey(KeyRecord, frozen=True, kw_only=True):
    """A new key. `secret` is shown this once; only its hash is kept."""

    secret: str


class KeyList(msgspec.Struct, frozen=True, kw_only=True):
    """All keys, revoked ones too."""

    keys: list[KeyRecord]
    total: int


def key_record(key: ApiKey) -> KeyRecord:
    """Return a key as it is shown."""
    return KeyRecord(
        key_id=key.id,
        name=key.name,
        role=key.role,
        owner=key.owner,
        created_at=iso(key.created_at),
        revoked_at=when(key.revoked_at),
    )


async def _admin(call: Call, action: str) -> None:
    await call.orchestrator.require(call.principal, Role.ADMIN, action)


async def create_key(call: Call) -> bytes:
    """Make an API key.

    From the first key on every caller needs one.
    """
    await _admin(call, "key.create")
    wanted = await call.record(KeyBody)
    key, secret = await call.orchestrator.keys.create(
        wanted.name, wanted.role, wanted.owner or call.principal.owner, by=call.principal
    )
    shown = msgspec.structs.asdict(key_record(key))
    return encode(NewKey(**shown, secret=secret))


async def list_keys(call: Call) -> bytes:
    """List the API keys."""
    await _admin(call, "key.list")
    keys = [key_record(key) for key in await call.orchestrator.keys.all()]
    return encode(KeyList(keys=keys, total=len(keys)))


async def revoke_key(call: Call) -> Response:
    """Revoke an API key."""
    await _admin(call, "key.revoke")
    await call.orchestrator.keys.revoke(call.ulid("key_id", "active key"), by=call.principal)
    return Response(status_code=204)


OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/keys",
        endpoint=create_key,
        tag="administration",
        body=KeyBody,
        gives=NewKey,
        status=201,
        errors=(507,),
    ),
    Operation(
        method="GET", path="/v1/keys", endpoint=list_keys, tag="administration", gives=KeyList
    ),
    Operation(
        method="DELETE",
        path="/v1/keys/{key_id}",
        endpoint=revoke_key,
        tag="administration",
        status=204,
        errors=(507,),
    ),
)
