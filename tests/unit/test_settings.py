"""Settings: what wins over what, and how a mistake is named."""

import json
from pathlib import Path

import jsonschema_rs
import pytest
from pydantic import ValidationError

from retinue import settings
from retinue.errors import SettingsError
from retinue.settings import AgentReference, Settings

mark = pytest.mark


def load(directory: Path, text: str = "", **environ: str) -> Settings:
    if text:
        (directory / "retinue.yaml").write_text(text)
    return settings.load(None, environ, directory)


def refusal(directory: Path, text: str = "", **environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(directory, text, **environ)
    return caught.value.message


@mark.requirement("003.env")
def test_the_defaults_are_the_specifications(tmp_path: Path) -> None:
    found = load(tmp_path)
    assert (found.host, found.port) == ("127.0.0.1", 8888)
    assert found.trace_url == "http://localhost:8787"
    assert found.memagent_url == "http://localhost:8799"


@mark.requirement("003.env")
def test_the_specifications_variables_win_over_the_file(tmp_path: Path) -> None:
    text = "port: 1\ntrace_url: http://file:1\nmemagent_url: http://file:2\n"
    found = load(
        tmp_path,
        text,
        ORCHESTRATOR_PORT="9001",
        TRACE_URL="http://trace:2/",
        MEMAGENT_URL="https://memory",
        DATABASE_URL="postgresql://me@host/retinue",
    )
    assert (found.port, found.trace_url) == (9001, "http://trace:2")
    assert found.memagent_url == "https://memory"
    assert found.database_url == "postgresql://me@host/retinue"


@mark.requirement("003.env")
@mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("ORCHESTRATOR_PORT", "eighty", "it must be a valid integer"),
        ("ORCHESTRATOR_PORT", "70000", "less than or equal to 65535"),
        ("TRACE_URL", "localhost:8787", "a URL like http://"),
        ("MEMAGENT_URL", "http://host:port", "Port could not be cast"),
        ("MEMAGENT_URL", "http://", "a URL like http://"),
        ("DATABASE_URL", "oracle://x", "sqlite:///path"),
        ("RETINUE_LOG_LEVEL", "loud", "'debug', 'info'"),
        ("RETINUE_EXAMPLES", "perhaps", "a valid boolean"),
        ("RETINUE_HOST", "http://x", "without scheme and port"),
        ("RETINUE_ALLOWED_ORIGINS", "https://a/b", "without a path"),
    ],
)
def test_a_bad_value_is_refused_naming_the_variable(
    tmp_path: Path, variable: str, value: str, problem: str
) -> None:
    message = refusal(tmp_path, **{variable: value})
    assert variable in message
    assert problem.lower() in message.lower()
    assert value in message


def test_every_bad_value_is_named_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, "port: x\n", RETINUE_QUEUE_BOUND="0")
    assert "retinue.yaml: port" in message
    assert "RETINUE_QUEUE_BOUND" in message


def test_a_list_is_called_a_list(tmp_path: Path) -> None:
    message = refusal(tmp_path, 'agents: "qa:safe"\n')
    assert "it must be a list" in message
    assert "tuple" not in message


def test_a_password_is_not_repeated(tmp_path: Path) -> None:
    assert "hunter2" not in refusal(tmp_path, DATABASE_URL="mysql://me:hunter2@host/x")
    found = load(tmp_path, DATABASE_URL="postgresql://me:hunter2@host/x")
    assert found.shown()["database_url"] == "postgresql://me:***@host/x"


def test_an_options_value_wins_over_everything(tmp_path: Path) -> None:
    (tmp_path / "retinue.yaml").write_text("port: 1\n")
    found = settings.load(None, {"RETINUE_PORT": "2"}, tmp_path, {"port": 3})
    assert found.port == 3
    with pytest.raises(SettingsError, match="--port is -1"):
        settings.load(None, {}, tmp_path, {"port": -1})


def test_a_misspelt_variable_is_an_error_with_the_right_name(tmp_path: Path) -> None:
    message = refusal(tmp_path, RETINUE_PROT="1")
    assert "RETINUE_PROT" in message
    assert "did you mean RETINUE_PORT?" in message
    assert "RETINUE_AGENTS" in refusal(tmp_path, RETINUE_AGENTS="a:B")


def test_bare_names_and_empty_variables_do_not_count(tmp_path: Path) -> None:
    found = load(tmp_path, PORT="1", HOST="0.0.0.0", ORCHESTRATOR_PORT="", RETINUE_HOST="")
    assert (found.host, found.port) == ("127.0.0.1", 8888)


def test_every_scalar_field_has_a_variable(tmp_path: Path) -> None:
    values = {
        "host": "::1",
        "port": "1",
        "data_dir": "d",
        "database_url": "sqlite://",
        "lease_seconds": "2.5",
        "examples": "false",
        "survey_root": "s",
        "entry_points": "0",
        "queue_bound": "5",
        "rate_limit_per_minute": "6",
        "max_concurrent_executions": "7",
        "max_agents_memory_mb": "4096",
        "priority_step_seconds": "0.5",
        "max_body_bytes": "2000",
        "max_requests": "7",
        "max_streams": "8",
        "max_held_bytes": "2000000",
        "max_result_bytes": "3000",
        "health_interval_seconds": "0.5",
        "health_timeout_seconds": "1",
        "egress_allow": "localhost, 10.0.0.0/8",
        "signing_key": "k" * 32,
        "grace_seconds": "0",
        "retention_days": "30",
        "retention_executions": "1000",
        "retention_event_days": "7.5",
        "cleanup_interval": "5",
        "log_level": "error",
        "log_format": "json",
        "allowed_hosts": "a, b",
        "allowed_origins": "https://a",
        "trace_url": "http://t",
        "memagent_url": "http://m",
    }
    assert values.keys() == Settings.model_fields.keys() - {"agents"}
    found = load(tmp_path, **{f"RETINUE_{name.upper()}": value for name, value in values.items()})
    assert found.model_fields_set == values.keys()
    assert found.lease_seconds == 2.5
    assert found.examples is False
    assert found.allowed_hosts == ("a", "b")
    assert found.data_dir == tmp_path / "d"


def test_unknown_keys_are_named_with_the_nearest(tmp_path: Path) -> None:
    message = refusal(tmp_path, "databse_url: sqlite://\n")
    assert "databse_url; did you mean database_url?" in message
    message = refusal(tmp_path, "agents:\n  - {agent: 'a:B', argument: {}}\n")
    assert "agents[0]" in message
    assert "did you mean arguments?" in message


@mark.parametrize(
    ("text", "part"),
    [
        ("port: 1\nport: 2\n", "port stands there twice"),
        ("- port\n", "keys and values"),
        ("port: [\n", "not valid YAML"),
        ("agents: ['no colon']\n", "module:Class"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, part: str) -> None:
    message = refusal(tmp_path, text)
    assert "retinue.yaml" in message
    assert part in message


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no file other\.yaml"):
        settings.load(Path("other.yaml"), {}, tmp_path)


def test_references_are_resolved_from_the_environment(tmp_path: Path) -> None:
    text = "agents:\n  - agent: a:B\n    arguments: {key: '<${SECRET}>', text: '$${SECRET} $5'}\n"
    (tmp_path / ".env").write_text("SECRET=from-the-file\n")
    found = load(tmp_path, text)
    assert isinstance(found.agents[0], AgentReference)
    assert found.agents[0].arguments == {"key": "<from-the-file>", "text": "${SECRET} $5"}
    assert found.shown()["agents"][0]["arguments"] == {"key": "***", "text": "***"}
    message = refusal(tmp_path, "host: ${NOT_THERE}\n")
    assert "host" in message
    assert "NOT_THERE" in message


def test_dotenv_stands_for_what_is_not_set(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "# ours\nexport ORCHESTRATOR_PORT='7001'  # a port\nOPENAI_API_KEY=sk-foreign\n"
        'RETINUE_HOST="::1"\nRETINUE_LOG_LEVEL=debug # words\nnot a line\nEMPTY=\n'
    )
    found = load(tmp_path, RETINUE_HOST="127.0.0.2")
    assert (found.port, found.host, found.log_level) == (7001, "127.0.0.2", "debug")
    (tmp_path / ".env").write_text("RETINUE_HOTS=x\n")
    assert "did you mean RETINUE_HOST?" in refusal(tmp_path)


def test_integrations_are_on_only_when_they_are_set(tmp_path: Path) -> None:
    assert not load(tmp_path).trace_enabled
    assert not load(tmp_path).memagent_enabled
    assert load(tmp_path).shown()["trace_url"] is None
    assert load(tmp_path).shown()["memagent_url"] is None
    found = load(tmp_path, TRACE_URL="http://localhost:8787")
    assert found.shown()["trace_url"] == "http://localhost:8787"
    assert found.trace_enabled
    assert not found.memagent_enabled


def test_relative_paths_are_relative_to_the_directory(tmp_path: Path) -> None:
    found = load(tmp_path, "data_dir: state\ndatabase_url: sqlite:///ledger.db\n")
    assert found.data_dir == tmp_path / "state"
    assert found.survey_root == tmp_path
    assert found.database_url == f"sqlite:///{tmp_path}/ledger.db"


def test_agents_come_in_two_forms(tmp_path: Path) -> None:
    found = load(tmp_path, "agents: ['a.b:C', {agent: 'x:Y', arguments: {n: 1}}]\n")
    references = [a for a in found.agents if isinstance(a, AgentReference)]
    assert [(a.agent, a.arguments) for a in references] == [("a.b:C", {}), ("x:Y", {"n": 1})]


def test_a_command_is_an_agent_of_the_file(tmp_path: Path) -> None:
    text = """
      agents:
        - {driver: command, agent_id: wc, command: [wc, -w], work_dir: here}
        - driver: command
          agent_id: cli
          command: [cli, run]
          environment: {API_KEY: "${KEY}"}
    """
    found = load(tmp_path, text, KEY="canary")
    commands = [given for given in found.agents if isinstance(given, settings.CommandReference)]
    assert [(c.agent_id, c.command, c.work_dir) for c in commands] == [
        ("wc", ("wc", "-w"), tmp_path / "here"),
        ("cli", ("cli", "run"), None),
    ]
    assert commands[1].environment == {"API_KEY": "canary"}
    assert "canary" not in json.dumps(found.shown()) + repr(found)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("agent_id: a b, command: [x]", "agents[0].agent_id"),
        ("agent_id: a, command: []", "agents[0].command is []"),
        ("agent_id: a, command: [1]", "agents[0].command[0] is 1"),
        ("agent_id: a, command: [x], promt: stdin", "did you mean prompt?"),
        ("agent_id: a, command: [x], interrupt: KILL", "'INT', 'TERM'"),
        ("agent_id: a, command: rm -rf", "agents[0].command is"),
        ("agent_id: a, command: [x], environment: {A: [canary]}", 'environment.A is "***"'),
    ],
)
def test_a_bad_command_is_refused_saying_what_is_wrong(
    tmp_path: Path, text: str, part: str
) -> None:
    assert part in refusal(tmp_path, f"agents: [{{driver: command, {text}}}]")


def test_settings_are_frozen(tmp_path: Path) -> None:
    found = load(tmp_path)
    with pytest.raises(ValidationError):
        found.port = 1


def test_the_schema_describes_every_field_and_accepts_a_good_file() -> None:
    schema = settings.schema()
    assert json.loads(json.dumps(schema)) == schema
    for name, field in schema["properties"].items():
        assert field["description"], name
    assert schema["properties"]["port"]["x-environment"] == ["RETINUE_PORT", "ORCHESTRATOR_PORT"]
    check = jsonschema_rs.validator_for(schema)
    assert check.is_valid({"port": 1, "agents": ["a:B", {"agent": "a:B", "arguments": {}}]})
    assert not check.is_valid({"prot": 1})
    assert not check.is_valid({"agents": [{"agnet": "a:B"}]})


def test_a_caller_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETINUE_URL", "http://one:1/")
    monkeypatch.setenv("RETINUE_API_KEY", "rtn_secret")
    found = settings.caller()
    assert (found.url, found.api_key) == ("http://one:1", "rtn_secret")
    assert "rtn_secret" not in repr(found)
    assert settings.caller("https://two").url == "https://two"
    monkeypatch.setenv("RETINUE_URL", "one")
    with pytest.raises(SettingsError, match="RETINUE_URL"):
        settings.caller()
