"""Who may do what: credentials, roles, owners; and where requests may come from and go to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest

if TYPE_CHECKING:
    from tests.server.conftest import Served

Start = Callable[..., "Served"]
TASK = {"session_id": "s", "capability": "echo", "parameters": {"text": "hi"}}
NOBODY = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


class Guarded(NamedTuple):
    """A server with keys, and a client for each role."""

    server: Served
    admin: httpx.Client
    operator: httpx.Client
    viewer: httpx.Client
    other: httpx.Client
    nobody: httpx.Client


def make_key(client: httpx.Client, name: str, role: str, owner: str | None = None) -> str:
    body = {"name": name, "role": role, **({"owner": owner} if owner else {})}
    answer = client.post("/v1/keys", json=body)
    assert answer.status_code == 201, answer.text
    secret: str = answer.json()["secret"]
    return secret


@pytest.fixture(params=["sqlite", "postgres"])
def guarded(request: pytest.FixtureRequest, start: Start) -> Iterator[Guarded]:
    url = request.getfixturevalue("postgres_url") if request.param == "postgres" else None
    server = start(database_url=url)
    with server.client() as local:
        admin = server.client(make_key(local, "root", "admin"))
    made = [
        server.client(make_key(admin, "op", "operator")),
        server.client(make_key(admin, "eye", "viewer")),
        server.client(make_key(admin, "else", "operator", "other")),
        server.client(),
    ]
    yield Guarded(server, admin, *made)
    for client in (admin, *made):
        client.close()
    server.ask_to_stop()
    server.join()


READS = [
    "/v1/", "/v1/agents", "/v1/agents/hold", "/v1/contracts", "/v1/status", "/v1/executions",
    f"/v1/executions/{NOBODY}", "/v1/sessions", "/v1/sessions/s", "/v1/questions", "/v1/parked",
    "/v1/ledger/verify", f"/v1/executions/{NOBODY}/events", "/v1/instances", "/v1/workers",
    f"/v1/instances/{NOBODY}", f"/v1/instances/{NOBODY}/log", "/v1/keys", "/v1/audit",
]  # fmt: skip


def test_with_a_key_in_the_store_everybody_needs_one(guarded: Guarded) -> None:
    routes = [("GET", path) for path in READS]
    routes += [("POST", path) for path in ("/v1/orchestrate", "/v1/executions", "/v1/compress")]
    routes += [("POST", f"/v1/executions/{NOBODY}/cancel"), ("DELETE", f"/v1/keys/{NOBODY}")]
    routes += [("POST", f"/v1/questions/{NOBODY}/answer"), ("POST", "/v1/keys")]
    routes += [("POST", "/v1/parked/retry")]
    for method, path in routes:
        answer = guarded.nobody.request(method, path)
        assert answer.status_code == 401, path
        assert answer.json()["code"] == "E_UNAUTHENTICATED"
        assert answer.headers["www-authenticate"].startswith("Bearer")
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert guarded.nobody.get(path).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer rtn_wrong"},
        {"Authorization": "Bearer ' OR 1=1--"},
        {"Authorization": "Bearer"},
        {"Authorization": "Basic cm9vdDpyb290"},
        {"Authorization": ""},
        {"X-API-Key": "rtn_wrong"},
        {"X-API-Key": ""},
        {b"X-API-Key": b"\xff\xfe"},
        {"Authorization": "Bearer " + "x" * 10_000},
    ],
)
def test_a_credential_that_is_none_is_401(client: httpx.Client, headers: Any) -> None:
    # Even where a caller without one would be the local admin.
    assert client.get("/v1/agents", headers=headers).status_code == 401


def test_both_headers_carry_a_key(guarded: Guarded) -> None:
    secret = make_key(guarded.admin, "second", "viewer")
    for headers in (
        {"X-API-Key": secret},
        {"Authorization": f"Bearer {secret}"},
        {"authorization": f"bearer {secret}"},
    ):
        assert guarded.nobody.get("/v1/agents", headers=headers).status_code == 200


def test_a_viewer_reads_and_does_nothing_else(guarded: Guarded) -> None:
    execution = guarded.operator.post("/v1/executions", json=TASK).json()["execution_id"]
    for path in READS[:-2]:
        assert guarded.viewer.get(path).status_code in {200, 404}, path
    refused = [
        guarded.viewer.post("/v1/orchestrate", json=TASK),
        guarded.viewer.post("/v1/executions", json=TASK),
        guarded.viewer.post(f"/v1/executions/{execution}/cancel"),
        guarded.viewer.post(f"/v1/questions/{NOBODY}/answer", json={"answer": 1}),
    ]
    for answer in refused:
        assert answer.status_code == 403
        assert answer.json()["code"] == "E_FORBIDDEN"


def test_keys_and_audit_are_for_admins(guarded: Guarded) -> None:
    for client in (guarded.viewer, guarded.operator):
        for answer in (
            client.get("/v1/keys"),
            client.post("/v1/keys", json={"name": "mine", "role": "admin"}),
            client.delete(f"/v1/keys/{NOBODY}"),
            client.get("/v1/audit"),
        ):
            assert answer.status_code == 403
    rows = guarded.admin.get("/v1/audit", params={"limit": 1000}).json()
    assert rows["total"] == len(rows["audit"])
    assert [row["n"] for row in rows["audit"]] == list(range(1, rows["total"] + 1))
    forbidden = [row for row in rows["audit"] if row["outcome"] == "forbidden"]
    assert {row["actor"] for row in forbidden} == {"eye", "op"}
    assert {"key.create", "key.list", "key.revoke", "audit.read"} <= {
        row["action"] for row in forbidden
    }


def test_a_secret_is_shown_once_and_not_kept(guarded: Guarded) -> None:
    made = guarded.admin.post("/v1/keys", json={"name": "once", "role": "viewer"}).json()
    assert made["secret"].startswith("rtn_")
    listed = guarded.admin.get("/v1/keys")
    assert made["secret"] not in listed.text
    shown = next(key for key in listed.json()["keys"] if key["key_id"] == made["key_id"])
    assert shown.keys() == {"key_id", "name", "role", "owner", "created_at", "revoked_at"}
    assert made["secret"] not in guarded.admin.get("/v1/audit?limit=1000").text


def test_a_revoked_key_is_none(guarded: Guarded) -> None:
    made = guarded.admin.post("/v1/keys", json={"name": "gone", "role": "viewer"}).json()
    headers = {"X-API-Key": made["secret"]}
    assert guarded.nobody.get("/v1/agents", headers=headers).status_code == 200
    revoked = guarded.admin.delete(f"/v1/keys/{made['key_id']}")
    assert (revoked.status_code, revoked.content) == (204, b"")
    assert guarded.nobody.get("/v1/agents", headers=headers).status_code == 401
    assert guarded.admin.delete(f"/v1/keys/{made['key_id']}").status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {"role": "viewer"},
        {"name": "a"},
        {"name": "a", "role": "owner"},
        {"name": "", "role": "viewer"},
        {"name": "a b", "role": "viewer"},
        {"name": "x" * 65, "role": "viewer"},
        {"name": "a", "role": "viewer", "owner": "../x"},
        {"name": "a", "role": "viewer", "owner": 1},
    ],
)
def test_keys_with_wrong_fields_are_422(client: httpx.Client, body: Any) -> None:
    assert client.post("/v1/keys", json=body).status_code == 422


def test_another_owners_things_are_not_there(guarded: Guarded) -> None:
    mine = guarded.operator.post("/v1/executions", json=TASK).json()["execution_id"]
    guarded.operator.post("/v1/orchestrate", json=TASK)
    asked = {"session_id": "s", "capability": "ask"}
    asking = guarded.operator.post("/v1/executions", json=asked).json()["execution_id"]
    with guarded.operator.stream("GET", f"/v1/executions/{asking}/events") as stream:
        next(stream.iter_lines())
    question = guarded.operator.get("/v1/questions").json()["questions"][0]["question_id"]
    other = guarded.other
    for method, path, body in (
        ("GET", "/v1/executions/{}", None),
        ("GET", "/v1/executions/{}/events", None),
        ("POST", "/v1/executions/{}/cancel", None),
        ("POST", "/v1/questions/{}/answer", {"answer": 1}),
    ):
        identifier = question if "questions" in path else mine
        theirs = other.request(method, path.format(identifier), json=body)
        absent = other.request(method, path.format(NOBODY), json=body)
        assert theirs.status_code == absent.status_code == 404
        assert theirs.text.replace(identifier, "") == absent.text.replace(NOBODY, "")
    for path in ("/v1/executions", "/v1/contracts", "/v1/sessions", "/v1/questions"):
        assert other.get(path).json()["total"] == 0, path
    assert other.get("/v1/sessions/s").status_code == 404
    assert other.get("/v1/contracts?session_id=s").json()["contracts"] == []
    assert other.get("/v1/status").json()["contracts"]["total_contracts"] == 0
    compressed = other.post("/v1/compress", json={"session_id": "s"}).json()
    assert compressed["compressed"] is False
    # The same session id is another session for them, and the same key another key.
    headers = {"Idempotency-Key": "k"}
    ours = guarded.operator.post("/v1/orchestrate", json=TASK, headers=headers).json()
    theirs = other.post("/v1/orchestrate", json=TASK, headers=headers)
    assert theirs.json()["execution_id"] != ours["execution_id"]
    assert other.get("/v1/sessions/s").json()["contracts"] == 2
    assert other.get("/v1/ledger/verify").json()["sessions"] == 1
    guarded.operator.post(f"/v1/executions/{asking}/cancel")


# -- where from, where to ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost", 200),
        ("LOCALHOST:99", 200),
        ("[::1]:8888", 200),
        ("app.example.org", 200),
        ("evil.example", 421),
        ("evil.example:8888", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("evil.example#localhost", 421),
        ("localhost@evil.example", 421),
        ("10.0.0.1", 421),
        ("", 421),
    ],
)
def test_hosts(start: Start, host: str, status: int) -> None:
    server = start(allowed_hosts=("app.example.org",))
    with server.client() as client:
        for path in ("/v1/health", "/docs", "/v1/agents", "/openapi.json"):
            answer = client.get(path, headers={"Host": host})
            assert answer.status_code == status
            if status == 421:
                assert answer.json()["code"] == "E_INVALID_INPUT"
                assert answer.json().keys() == {"code", "message", "retryable", "details"}


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        ("http://127.0.0.1:3000", 200),
        ("https://localhost", 200),
        ("http://[::1]:1", 200),
        ("https://app.example.org", 200),
        ("https://APP.example.org", 200),
        ("https://app.example.org:444", 403),
        ("http://app.example.org", 403),
        ("http://evil.example", 403),
        ("http://localhost.evil.example", 403),
        ("http://localhost@evil.example", 403),
        ("ftp://localhost", 403),
        ("http://localhost/path", 403),
        ("http://[::1", 403),
        ("null", 403),
        ("", 403),
    ],
)
def test_origins(start: Start, origin: str | None, status: int) -> None:
    server = start(allowed_origins=("https://app.example.org",))
    headers = {"Origin": origin} if origin is not None else {}
    with server.client() as client:
        answer = client.post("/v1/orchestrate", json=TASK, headers=headers)
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["code"] == "E_FORBIDDEN"
