"""The OpenAPI document lists every route, and what is answered is what it says."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import jsonschema_rs
import pytest

from retinue import __version__
from retinue.server.app import OPERATIONS, create_app
from retinue.server.routing import record
from retinue.settings import CommandReference, WorkerReference

if TYPE_CHECKING:
    from tests.server.conftest import Served

PYTHON = (sys.executable, "-I", "-S")
WORKER = Path(__file__).parents[1] / "engine" / "misbehaving.py"
METHODS = {"get", "post", "put", "patch", "delete"}


@pytest.fixture
def document(client: httpx.Client) -> dict[str, Any]:
    answer = client.get("/openapi.json")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield method, path and description of each operation."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert method in METHODS
            yield method.upper(), path, operation


def test_a_worker_s_name_is_no_id_of_ours(document: dict[str, Any]) -> None:
    paths = [path for _, path, _ in operations(document) if "/{name}" in path]
    assert paths
    for path in paths:
        for operation in document["paths"][path].values():
            (name,) = [p for p in operation["parameters"] if p["name"] == "name"]
            assert re.search(name["schema"]["pattern"], "my-worker.2")


@pytest.mark.requirement("003.docs")
def test_every_route_is_listed(
    server: Served, client: httpx.Client, document: dict[str, Any]
) -> None:
    listed = {f"{method} {path}" for method, path, _ in operations(document)}
    app = create_app(server.orchestrator, server.settings, loopback=True)
    routed = {
        f"{method} {path}"
        for route in app.routes
        for path in [getattr(route, "path", "")]
        for method in getattr(route, "methods", None) or ()
        if path.startswith("/v1/")
    }
    assert listed == routed - {"HEAD /v1/"}
    assert listed == set(client.get("/v1/").json()["endpoints"])
    assert len(listed) == len(OPERATIONS)


BARE = ("/cancel", "/retry", "/anchor", "/pause", "/resume", "/stop")
"""What takes no body."""


def test_every_operation_is_complete(document: dict[str, Any]) -> None:
    seen: set[str] = set()
    for method, path, operation in operations(document):
        where = f"{method} {path}"
        assert operation["summary"], where
        assert operation["tags"], where
        assert operation["operationId"] not in seen
        seen.add(operation["operationId"])
        named = set(re.findall(r"{(\w+)}", path))
        given = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "path"}
        assert named == given, where
        for parameter in operation.get("parameters", ()):
            assert parameter["schema"], where
        if method == "POST" and not path.endswith(BARE):
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            assert schema["$ref"].startswith("#/components/schemas/"), where
        responses = operation["responses"]
        if path != "/v1/health":
            assert "401" in responses, where
        for status, response in responses.items():
            assert response["description"], where
            if int(status) >= 400 and path != "/v1/health":
                schema = response["content"]["application/json"]["schema"]
                name = "Fault" if operation["tags"] == ["invocations"] else "ErrorBody"
                assert schema == {"$ref": f"#/components/schemas/{name}"}, where
        for status in (s for s in responses if s.startswith("2") and s != "204"):
            assert responses[status]["content"], where
            for media in responses[status]["content"].values():
                assert media["schema"], where


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                if key == "$ref":
                    yield value
                else:
                    yield from references(value)
        elif isinstance(node, list):
            for child in node:
                yield from references(child)

    names = set(references(document))
    assert names
    for name in names:
        prefix, _, record = name.rpartition("/")
        assert prefix == "#/components/schemas"
        assert record in document["components"]["schemas"]


def test_the_document_says_how_to_authenticate(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    assert document["info"]["version"] == "1.0.0"
    assert f"Retinue {__version__}." in document["info"]["description"]
    schemes = document["components"]["securitySchemes"]
    assert schemes.keys() == {"bearer", "apiKey"}
    assert document["paths"]["/v1/health"]["get"]["security"] == []
    assert {"bearer": []} in document["paths"]["/v1/agents"]["get"]["security"]


def test_what_is_prefilled_is_accepted(client: httpx.Client, document: dict[str, Any]) -> None:
    """Swagger's "try it out" and ReDoc's samples show the operation's example."""
    examples = {}
    for operation in OPERATIONS:
        if operation.body is not None:
            described = document["paths"][operation.path][operation.method.lower()]
            content = described["requestBody"]["content"]["application/json"]
            reference = content["schema"]["$ref"].rpartition("/")[2]
            schema = document["components"]["schemas"][reference]
            components = {"components": document["components"]}
            jsonschema_rs.validate({**schema, **components}, content["example"])
            record(content["example"], operation.body)
            examples[operation.path] = content["example"]
    assert len(examples) == 16
    done = client.post("/v1/orchestrate", json=examples["/v1/orchestrate"])
    assert (done.status_code, done.json()["success"]) == (200, True)
    assert client.post("/v1/executions", json=examples["/v1/executions"]).status_code == 202
    assert client.post("/v1/compress", json=examples["/v1/compress"]).status_code == 200


def test_a_task_names_a_capability_or_an_agent(document: dict[str, Any]) -> None:
    """The document says it without making two records of one, and as the server has it."""
    schemas = document["components"]["schemas"]
    fits = jsonschema_rs.validator_for({**schemas["TaskBody"], "components": {"schemas": schemas}})
    for name in ("capability", "agent_id"):
        other = "agent_id" if name == "capability" else "capability"
        assert fits.is_valid({"session_id": "s", name: "x"})
        assert fits.is_valid({"session_id": "s", name: "x", other: None})
        assert not fits.is_valid({"session_id": "s", name: None})
    assert not fits.is_valid({"session_id": "s"})
    assert "anyOf" not in schemas["TaskBody"]


def test_a_field_that_may_be_null_says_what_it_is(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name, schema in schemas.items():
        for field, said in schema.get("properties", {}).items():
            assert said.get("default", 0) is not None, (name, field)
    assert schemas["TaskBody"]["properties"]["intent"] == {
        "anyOf": [{"type": "string"}, {"type": "null"}],
        "description": "What it is for; kept in the record.",
    }


class Fits:
    """Holds answers to the document, and knows which operations were not tried yet."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self.left = {f"{method} {path}" for method, path, _ in operations(document)}

    def __call__(self, operation: str, answer: httpx.Response) -> Any:
        """Check one answer of an operation and return its value."""
        self.left.discard(operation)
        method, _, path = operation.partition(" ")
        responses = self._document["paths"][path][method.lower()]["responses"]
        described = responses[str(answer.status_code)]
        if answer.status_code == 204:
            assert "content" not in described
            return None
        kind = answer.headers["content-type"].partition(";")[0]
        schema = described["content"][kind]["schema"]
        json = kind == "application/json"
        values = [answer.json()] if json else [*map(_event, answer.text.strip().split("\n\n"))]
        components = {"components": self._document["components"]}
        for value in values:
            jsonschema_rs.validate({**schema, **components}, value)
        return values[0]


def _event(text: str) -> dict[str, str]:
    """Return the fields of one server-sent event."""
    return dict(line.split(": ", 1) for line in text.splitlines())


@pytest.mark.requirement("003.docs")
def test_what_is_answered_fits_its_schema(
    start: Callable[..., Served], document: dict[str, Any]
) -> None:
    fits = Fits(document)
    program = CommandReference(driver="command", agent_id="p", command=("cat",), stdin_open=True)
    parts = (_tasks, _invocations, _record, _service, _agents, _instances, _workers, _questions)
    agents = (program, WorkerReference(driver="stdio", name="w", command=(*PYTHON, str(WORKER))))
    with start(egress_allow=("127.0.0.1",), agents=agents).client() as client:
        for part in (*parts, _administration):
            part(client, fits)
    assert fits.left == set()


def _tasks(client: httpx.Client, fits: Fits) -> None:
    task = {"session_id": "s", "capability": "echo", "parameters": {"text": "hi"}}
    bad = {"session_id": "s", "capability": "raise"}
    good = fits("POST /v1/orchestrate", client.post("/v1/orchestrate", json=task))
    failed = fits("POST /v1/orchestrate", client.post("/v1/orchestrate", json=bad))
    for wrong in ({}, {**task, "capability": "x"}):
        fits("POST /v1/orchestrate", client.post("/v1/orchestrate", json=wrong))
    fits("POST /v1/executions", client.post("/v1/executions", json=task))
    fits("GET /v1/executions", client.get("/v1/executions"))
    for execution in (good["execution_id"], failed["execution_id"], "x"):
        found = client.get(f"/v1/executions/{execution}")
        fits("GET /v1/executions/{execution_id}", found)
    one = f"/v1/executions/{good['execution_id']}"
    for last in ("0", "1", "2"):
        events = client.get(f"{one}/events", headers={"Last-Event-ID": last})
        fits("GET /v1/executions/{execution_id}/events", events)
    fits("POST /v1/executions/{execution_id}/cancel", client.post(f"{one}/cancel"))
    again = f"/v1/executions/{failed['execution_id']}/retry"
    for path in (f"{one}/retry", again):
        fits("POST /v1/executions/{execution_id}/retry", client.post(path))
    later = client.post("/v1/executions", json={**task, "run_at": "2030-01-01T00:00:00Z"})
    waiting = fits("POST /v1/executions", later)
    for execution in (waiting["execution_id"], good["execution_id"]):
        path = f"/v1/executions/{execution}/priority"
        ranked = client.post(path, json={"priority": 5})
        fits("POST /v1/executions/{execution_id}/priority", ranked)
    fits("GET /v1/queue", client.get("/v1/queue"))


def _invocations(client: httpx.Client, fits: Fits) -> None:
    asked = {"agent_name": "ask", "options": {"async": True}}
    echo = {"agent_name": "agent_example_001", "input": {"text": "hi"}}
    post, one = "POST /v1/invocations", "/v1/invocations/{invoke_id}"
    for options in ({"capability": "echo"}, {"capability": "echo", "stream": True}, {}):
        answer = client.post("/v1/invocations", json={**echo, "options": options})
        fits(post, answer)
    fits(post, client.post("/v1/invocations", json={"agent_name": "failing", "x": 1}))
    fits(post, client.post("/v1/invocations", json={"options": {"capability": "raise"}}))
    begun = fits(post, client.post("/v1/invocations", json=asked))["invoke_id"]
    for invoke_id in (begun, "x"):
        step = client.get(f"/v1/invocations/{invoke_id}/next_step")
        fits(f"GET {one}/next_step", step)
        pending = client.get("/v1/human_input", params={"invoke_id": invoke_id})
        fits("GET /v1/human_input", pending)
    fits(f"GET {one}/result", client.get(f"/v1/invocations/{begun}/result?timeout_ms=1"))
    listed = fits("GET /v1/human_input", client.get("/v1/human_input"))
    ids = {name: listed["result"][0][name] for name in ("invoke_id", "input_id")}
    for _ in range(2):
        given = client.post("/v1/human_input", json={**ids, "value": "x"})
        fits("POST /v1/human_input", given)
    done = client.get(f"/v1/invocations/{begun}/result")
    assert fits(f"GET {one}/result", done)["result"] == "x"


def _record(client: httpx.Client, fits: Fits) -> None:
    fits("GET /v1/contracts", client.get("/v1/contracts?session_id=s"))
    fits("GET /v1/contracts", client.get("/v1/contracts?limit=0"))
    fits("GET /v1/sessions", client.get("/v1/sessions"))
    fits("GET /v1/sessions/{session_id}", client.get("/v1/sessions/s"))
    for session in ("s", "empty"):
        compressed = client.post("/v1/compress", json={"session_id": session})
        fits("POST /v1/compress", compressed)
    fits("GET /v1/parked", client.get("/v1/parked"))
    fits("POST /v1/parked/retry", client.post("/v1/parked/retry"))
    fits("GET /v1/ledger/verify", client.get("/v1/ledger/verify"))


def _service(client: httpx.Client, fits: Fits) -> None:
    for path in ("/v1/", "/v1/health", "/v1/status", "/v1/agents"):
        fits(f"GET {path}", client.get(path))
    fits("GET /v1/agents/{agent_id}", client.get("/v1/agents/agent_example_001"))


def _agents(client: httpx.Client, fits: Fits) -> None:
    wanted = {"name": "Far", "endpoint": "http://127.0.0.1:9", "capabilities": [{"name": "far"}]}
    for agent_id in ("far", "far", "../far"):
        body = {"agent_id": agent_id, **wanted}
        fits("POST /v1/agents/register", client.post("/v1/agents/register", json=body))
    fits("GET /v1/agents/{agent_id}", client.get("/v1/agents/far"))
    for agent_id in ("hold", "far", "far"):
        fits("DELETE /v1/agents/{agent_id}", client.delete(f"/v1/agents/{agent_id}"))


def _instances(client: httpx.Client, fits: Fits) -> None:
    task = {"session_id": "s", "agent_id": "p", "parameters": {"prompt": "hi"}}
    assert client.post("/v1/executions", json=task).status_code == 202
    while not (found := client.get("/v1/instances?state=busy,ready").json()["instances"]):
        pass
    fits("GET /v1/instances", client.get("/v1/instances?live=true&agent_id=p"))
    one, named = f"/v1/instances/{found[0]['instance_id']}", "/v1/instances/{instance_id}"
    fits(f"POST {named}/stdin", client.post(f"{one}/stdin", json={"text": "x"}))
    for word in ("pause", "pause", "resume"):
        fits(f"POST {named}/{word}", client.post(f"{one}/{word}"))
    for sent in ({"signal": "CONT"}, {"signal": "Interrupt", "tree": 1}):
        fits(f"POST {named}/signal", client.post(f"{one}/signal", json=sent))
    fits(f"POST {named}/stop", client.post(f"{one}/stop"))
    for path in (one, "/v1/instances/x"):
        fits(f"GET {named}", client.get(path))
    for word in ("pause", "resume", "stdin"):
        body: dict[str, Any] | None = {} if word == "stdin" else None
        fits(f"POST {named}/{word}", client.post(f"{one}/{word}", json=body))
    for accepted in ("application/json", "text/event-stream"):
        fits(f"GET {named}/log", client.get(f"{one}/log", headers={"Accept": accepted}))


def _workers(client: httpx.Client, fits: Fits) -> None:
    fits("GET /v1/workers", client.get("/v1/workers"))
    for name in ("w", "x"):
        fits("GET /v1/workers/{name}", client.get(f"/v1/workers/{name}"))
        for body in ({"processes": 2}, {"processes": -1}):
            scaled = client.post(f"/v1/workers/{name}/scale", json=body)
            fits("POST /v1/workers/{name}/scale", scaled)
        restarted = client.post(f"/v1/workers/{name}/restart", json={})
        fits("POST /v1/workers/{name}/restart", restarted)
        for _ in range(2):
            deployed = client.post(f"/v1/workers/{name}/deploy", json={})
            fits("POST /v1/workers/{name}/deploy", deployed)
        ended = client.post(f"/v1/workers/{name}/shutdown", json={})
        fits("POST /v1/workers/{name}/shutdown", ended)
    fits("GET /v1/agents/{agent_id}", client.get("/v1/agents/it"))


def _questions(client: httpx.Client, fits: Fits) -> None:
    asking = {"session_id": "s", "capability": "ask"}
    asked = client.post("/v1/executions", json=asking).json()["execution_id"]
    with client.stream("GET", f"/v1/executions/{asked}/events") as stream:
        next(stream.iter_lines())
    listed = fits("GET /v1/questions", client.get("/v1/questions"))
    path = f"/v1/questions/{listed['questions'][0]['question_id']}/answer"
    answered = client.post(path, json={"answer": "a"})
    fits("POST /v1/questions/{question_id}/answer", answered)


def _administration(client: httpx.Client, fits: Fits) -> None:
    task = {"session_id": "e", "capability": "echo", "parameters": {"text": "hi"}}
    done = client.post("/v1/orchestrate", json=task).json()
    one = f"/v1/executions/{done['execution_id']}"
    fits("DELETE /v1/executions/{execution_id}/body", client.delete(f"{one}/body"))
    assert fits("GET /v1/executions/{execution_id}", client.get(one))["erased"] is True
    plain = client.get(f"{one}/events", headers={"Accept": "application/json"})
    fits("GET /v1/executions/{execution_id}/events", plain)
    fits("DELETE /v1/sessions/{session_id}/body", client.delete("/v1/sessions/e/body"))
    fits("DELETE /v1/sessions/{session_id}/body", client.delete("/v1/sessions/x/body"))
    anchor = fits("POST /v1/ledger/anchor", client.post("/v1/ledger/anchor"))["anchor"]
    verdict = client.get("/v1/ledger/verify", params={"anchor": anchor})
    assert fits("GET /v1/ledger/verify", verdict)["ok"] is True
    fits("POST /v1/ledger/prune", client.post("/v1/ledger/prune", json={"dry_run": True}))
    made = fits("POST /v1/keys", client.post("/v1/keys", json={"name": "a", "role": "admin"}))
    client.headers["X-API-Key"] = made["secret"]
    fits("GET /v1/keys", client.get("/v1/keys"))
    assert fits("GET /v1/audit", client.get("/v1/audit"))["audit"]
    fits("DELETE /v1/keys/{key_id}", client.delete(f"/v1/keys/{made['key_id']}"))
    fits("GET /v1/keys", client.get("/v1/keys"))
