"""The table of scenarios: who runs against whom, and what is aimed at.

A contender is a module that takes ``--warm``, ``--seconds`` and ``--directory`` and prints one line
of JSON with at least ``per_second``, ``p50_ms`` and ``p99_ms`` (or ``{"skipped": why}``). The first
contender of a scenario is its baseline: every ratio in the table is against it, round by round.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Contender:
    """One way to answer a scenario's question.

    ``quick`` are arguments added by ``--quick``; ``patience`` is how many seconds it may take
    beyond the measured ones (imports, making its data, checking it); ``peer`` says that it runs in
    the peers' environment.
    """

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    patience: float = 60.0
    peer: bool = False


@dataclass(frozen=True)
class Target:
    """What a contender aims at: ``metric`` at least or at most ``bound``.

    With ``of`` the value is the ratio of the contender's metric to that contender's, in the same
    round; without, the metric itself. The median over the rounds decides.
    """

    contender: str
    bound: float
    of: str | None = None
    metric: str = "per_second"
    at_most: bool = False


@dataclass(frozen=True)
class Scenario:
    """A question: contenders, the baseline first, and targets."""

    name: str
    title: str
    contenders: tuple[Contender, ...]
    targets: tuple[Target, ...] = ()
    unit: str = "tasks/s"
    postgres: bool = False
    """Every run gets an empty database of one PostgreSQL server, its address by ``--database``."""


ECHO = Scenario(
    name="echo",
    title="in-process durable echo on SQLite, 64 callers; every answered task is on disk",
    contenders=(
        Contender("probe", "bench.probe"),
        Contender("retinue", "bench.ours.echo"),
        Contender("langgraph", "bench.peers.langgraph_sqlite", peer=True),
        # Threads and one connection: the fastest of its settings here, see the module.
        Contender(
            "dbos", "bench.peers.dbos_sqlite", ("--api", "threads", "--pool", "1"), peer=True
        ),
    ),
    targets=(
        Target("retinue", 0.5, of="probe"),
        Target("retinue", 50, of="langgraph"),
        Target("retinue", 100, of="dbos"),
    ),
)

HTTP = Scenario(
    name="http",
    title="POST an echo over 64 connections: the durable route beside the same door with no store",
    contenders=(
        Contender("not durable", "bench.ours.http", ("--door", "echo")),
        Contender("retinue", "bench.ours.http", ("--door", "durable")),
        Contender("bare starlette", "bench.ours.http", ("--door", "bare")),
    ),
    targets=(Target("retinue", 0.35, of="not durable"),),
    unit="requests/s",
)

ROUTING = Scenario(
    name="routing",
    title="choose the least loaded agent of a capability that all agents have, and take its slot",
    contenders=(
        Contender("10 agents", "bench.ours.routing", ("--agents", "10")),
        Contender("10,000 agents", "bench.ours.routing", ("--agents", "10000")),
        Contender(
            "10,000, 99% open circuits",
            "bench.ours.routing",
            ("--agents", "10000", "--open", "0.99"),
        ),
    ),
    targets=(
        Target("10,000 agents", 1.0, metric="p99_ms", at_most=True),
        Target("10,000, 99% open circuits", 1.0, metric="p99_ms", at_most=True),
    ),
    unit="routes/s",
)

LOOKUP = Scenario(
    name="lookup",
    title="find one agent by its id: of the system's, or of a runner's processes",
    contenders=(
        Contender("10 agents", "bench.ours.routing", ("--agents", "10", "--lookup")),
        Contender("10,000 agents", "bench.ours.routing", ("--agents", "10000", "--lookup")),
        Contender("runner, 10", "bench.ours.lookup", ("--agents", "10")),
        Contender("runner, 10,000", "bench.ours.lookup", ("--agents", "10000")),
    ),
    targets=(
        Target("10,000 agents", 0.5, of="10 agents"),
        Target("runner, 10,000", 2, of="runner, 10", metric="p50_ms", at_most=True),
    ),
    unit="lookups/s",
)

STORE = Scenario(
    name="store",
    title="in-process durable echo over 100 sessions: empty, and with 5 million contracts"
    " (--quick: 200,000) in it",
    contenders=(
        Contender("empty", "bench.ours.echo", ("--sessions", "100")),
        Contender(
            "full",
            "bench.ours.echo",
            ("--sessions", "100", "--contracts", "5000000"),
            quick=("--contracts", "200000"),
            # The first run makes the store, which is then kept.
            patience=1800,
        ),
    ),
    targets=(Target("full", 0.8, of="empty"),),
)

POSTGRES = Scenario(
    name="postgres",
    title="in-process durable echo on one PostgreSQL, 64 callers; every answered task is on disk",
    contenders=(
        Contender("probe", "bench.probe_postgres"),
        Contender("retinue", "bench.ours.echo_postgres"),
        Contender("langgraph", "bench.peers.langgraph_postgres", peer=True),
        Contender("dbos", "bench.peers.dbos_postgres", peer=True),
    ),
    targets=(
        Target("retinue", 0.5, of="probe"),
        Target("retinue", 30, of="langgraph"),
        Target("retinue", 40, of="dbos"),
    ),
    postgres=True,
)

SSE = Scenario(
    name="sse",
    title="one execution's events to 100 readers, server-sent; the bare server keeps no record",
    contenders=(
        Contender("bare", "bench.ours.sse", ("--door", "bare")),
        Contender("retinue", "bench.ours.sse", ("--door", "product")),
    ),
    targets=(Target("retinue", 0.6, of="bare"),),
    unit="events/s",
)

STAGES = Scenario(
    name="stages",
    title="the stages of one task, one caller; specification 003 expects <1 ms, 1-5 ms, any,"
    " 10-50 ms, 1-5 s",
    contenders=tuple(
        Contender(stage, "bench.ours.stages", ("--stage", stage))
        for stage in ("routing", "contract", "agent", "trace", "compress")
    ),
    targets=(
        Target("routing", 1.0, metric="p50_ms", at_most=True),
        Target("contract", 5.0, metric="p50_ms", at_most=True),
        Target("trace", 50.0, metric="p50_ms", at_most=True),
        Target("compress", 5000.0, metric="p50_ms", at_most=True),
    ),
    unit="/s",
)

CODING = Scenario(
    name="coding",
    title="streamed updates of a coding CLI, from its pipe to the journal; bare: the same lines"
    " read by asyncio and parsed, lean: as fast as Python can",
    contenders=tuple(
        Contender(f"{kind}, {door}", "bench.ours.coding", ("--kind", kind, *more))
        for kind in ("claude", "codex", "acp")
        for door, more in (
            ("bare", ("--bare", "asyncio")),
            ("lean", ("--bare", "lean")),
            ("retinue", ()),
        )
    ),
    targets=tuple(
        Target(f"{kind}, retinue", 1 / 3, of=f"{kind}, bare") for kind in ("claude", "codex", "acp")
    ),
    unit="updates/s",
)

MULTIPLEX = Scenario(
    name="multiplex",
    title="200 sessions of one app-server at once, each a turn of 2 s: all complete",
    contenders=(Contender("200 sessions", "bench.ours.coding", ("--sessions", "200")),),
    targets=(Target("200 sessions", 20),),
    unit="turns/s",
)

BLOCKED = ("--count", "200000")
QUEUE = Scenario(
    name="queue",
    title="lease one task: nothing else waits, or 200,000 others that cannot go (their agent is"
    " busy, their hour has not come, their session is); submit and end are not in the latency",
    contenders=(
        Contender("empty", "bench.ours.queue"),
        Contender("blocked", "bench.ours.queue", BLOCKED, patience=180),
        Contender("long line", "bench.ours.queue", (*BLOCKED, "--blocked", "line"), patience=180),
        Contender("empty, postgres", "bench.ours.queue", ("--store", "postgres")),
        Contender(
            "blocked, postgres",
            "bench.ours.queue",
            ("--store", "postgres", *BLOCKED),
            patience=240,
        ),
    ),
    targets=(
        Target("blocked", 2, of="empty", metric="p50_ms", at_most=True),
        Target("blocked, postgres", 2, of="empty, postgres", metric="p50_ms", at_most=True),
    ),
    unit="leases/s",
)

SDK = ("--child", "sdk")
STDIO = Scenario(
    name="stdio",
    title="round trips to one echo worker over stdio, 64 in flight, beside a bare pipe to the same"
    " child; the whole durable path beside the same in process; a process that runs beside a new"
    " one for each call",
    contenders=(
        Contender("bare pipe", "bench.ours.stdio", ("--way", "pipe")),
        Contender("driver", "bench.ours.stdio", ("--way", "driver")),
        Contender("bare pipe, sdk child", "bench.ours.stdio", ("--way", "pipe", *SDK)),
        Contender("driver, sdk child", "bench.ours.stdio", ("--way", "driver", *SDK)),
        Contender("durable, in process", "bench.ours.echo"),
        Contender("durable, worker", "bench.ours.stdio", ("--way", "durable")),
        Contender("cold", "bench.ours.stdio", ("--way", "cold", *SDK)),
        Contender("warm", "bench.ours.stdio", ("--way", "warm", *SDK)),
        # Its low-level server: the faster of its two, see the module.
        Contender("mcp", "bench.peers.mcp_stdio", peer=True),
    ),
    targets=(
        Target("driver", 0.5, of="bare pipe"),
        Target("driver", 40, of="mcp"),
        Target("driver, sdk child", 40, of="mcp"),
        Target("driver, sdk child", 0.5, of="bare pipe, sdk child"),
        Target("durable, worker", 0.5, of="durable, in process"),
        Target("warm", 5, of="cold"),
    ),
    unit="round trips/s",
)

FIRST = "bench.ours.first_chunk"
FIRST_CHUNK = Scenario(
    name="first-chunk",
    title="from asking to the first chunk, 10 streams of one worker at a time: through the record,"
    " beside one durable commit and a bare pipe",
    contenders=(
        Contender("commit + pipe", FIRST, ("--way", "pipe")),
        Contender("durable", FIRST, ("--way", "durable")),
    ),
    targets=(Target("durable", 3, of="commit + pipe", metric="p50_ms", at_most=True),),
    unit="streams/s",
)

BUDGET = "bench.ours.budget"
LATENCY = Scenario(
    name="latency",
    title="what specification 000 (8.1) aims at, one worker of the SDK, one caller; the model that"
    " llm says it used takes no time; datasets are not there yet",
    contenders=tuple(
        Contender(name, BUDGET, ("--of", name))
        for name in ("startup", "simple_invoke", "llm_invoke", "stream_chunk", "health_check")
    ),
    targets=(
        Target("startup", 5_000, metric="p99_ms", at_most=True),
        Target("simple_invoke", 2_000, metric="p99_ms", at_most=True),
        Target("llm_invoke", 10_000, metric="p99_ms", at_most=True),
        Target("stream_chunk", 100, metric="p99_ms", at_most=True),
        Target("health_check", 100, metric="p99_ms", at_most=True),
    ),
    unit="/s",
)

EACH = ("--watchers", "each")
PROCESSES = Scenario(
    name="processes",
    title="start 200 sleeping processes until all of them run; an agent's output is always read",
    contenders=(
        Contender("retinue", "bench.ours.processes"),
        Contender("circus", "bench.peers.circus_processes", (*EACH, "--output"), peer=True),
        Contender("circus, output not read", "bench.peers.circus_processes", EACH, peer=True),
        Contender(
            "circus, copies of one",
            "bench.peers.circus_processes",
            ("--watchers", "one", "--output"),
            peer=True,
        ),
    ),
    targets=(Target("retinue", 5, of="circus"),),
    unit="processes/s",
)

EXITS = Scenario(
    name="exits",
    title="notice that one of 220 processes was killed; also while a grandchild holds its output",
    contenders=(
        Contender("retinue", "bench.ours.exits"),
        Contender("output held", "bench.ours.exits", ("--held",)),
    ),
    targets=(
        Target("retinue", 10, metric="p99_ms", at_most=True),
        Target("output held", 200, metric="p99_ms", at_most=True),
    ),
    unit="exits/s",
)

POOL = Scenario(
    name="pool",
    title="from wanting an agent (a Python program) to its first answer: started for it, or taken"
    " from a pool of two",
    contenders=(
        Contender("cold", "bench.ours.pool", ("--cold",)),
        Contender("warm", "bench.ours.pool"),
    ),
    targets=(Target("warm", 5, of="cold"),),
    unit="first answers/s",
)

CALLS = Scenario(
    name="calls",
    title="1,000 agents under supervision (--quick: 200), 10 lines to each and their answers",
    contenders=(Contender("retinue", "bench.ours.calls", quick=("--agents", "200")),),
    targets=(
        Target("retinue", 0, metric="lost", at_most=True),
        Target("retinue", 250, metric="rss_mb", at_most=True),
        Target("retinue", 32, metric="threads", at_most=True),
    ),
    unit="calls/s",
)

FLOODS = ("stderr", "one line")
SMALL_FLOOD = ("--size", "200m")
FLOOD = Scenario(
    name="flood",
    title="tasks of other agents while one writes 1 GB (--quick: 200 MB): lines to stderr, or one"
    " line to stdout",
    contenders=(
        Contender("idle", "bench.ours.flood"),
        Contender(
            "stderr", "bench.ours.flood", ("--flood", "errors"), quick=SMALL_FLOOD, patience=120
        ),
        Contender(
            "one line", "bench.ours.flood", ("--flood", "line"), quick=SMALL_FLOOD, patience=120
        ),
    ),
    targets=(
        *(Target(name, 3, of="idle", metric="p99_ms", at_most=True) for name in FLOODS),
        *(Target(name, 32, metric="grown_mb", at_most=True) for name in FLOODS),
    ),
)

HOSTILE = Scenario(
    name="hostile",
    title="end trees of processes that resist, until nothing of them exists: by a stop, or by"
    " kill -9 of their owner",
    contenders=(
        Contender("stop", "bench.ours.hostile", ("--after", "stop")),
        Contender("kill -9", "bench.ours.hostile", ("--after", "kill")),
    ),
    targets=tuple(
        Target(name, 2000, metric="worst_ms", at_most=True) for name in ("stop", "kill -9")
    ),
    unit="trees/s",
)

AGENTS = (
    PROCESSES,
    EXITS,
    POOL,
    CALLS,
    FLOOD,
    HOSTILE,
    CODING,
    MULTIPLEX,
    STDIO,
    FIRST_CHUNK,
    LATENCY,
)
SCENARIOS = (ECHO, POSTGRES, HTTP, SSE, STAGES, ROUTING, LOOKUP, QUEUE, *AGENTS, STORE)
