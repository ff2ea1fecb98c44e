"""The seams: Driver and Instance, Store, Sink and Memory.

Everything above them is written against these protocols; only ``runtime`` names what stands
behind them. Each protocol's docstrings are its contract; the conformance suites in
``retinue.testing`` hold implementations to it.
"""

from retinue.interfaces.drivers import (
    STALL_SECONDS,
    Birth,
    Driver,
    DriverContext,
    Exited,
    Features,
    Health,
    Heard,
    Instance,
    InstanceBook,
    InstanceHandle,
    Job,
    Keeping,
    KeepingDriver,
    LiveInstance,
    Process,
    SubmitPort,
    Supervised,
)
from retinue.interfaces.listings import (
    PAGE_BYTES,
    AgentTally,
    Backlog,
    ContractFilter,
    ContractView,
    ExecutionFilter,
    InstanceFilter,
    Listing,
    Page,
    QueueDepth,
    StoreCounts,
    Watched,
)
from retinue.interfaces.services import (
    Leavings,
    Memory,
    Peer,
    Sink,
)
from retinue.interfaces.store import (
    Store,
)

__all__ = [
    "PAGE_BYTES",
    "STALL_SECONDS",
    "AgentTally",
    "Backlog",
    "Birth",
    "ContractFilter",
    "ContractView",
    "Driver",
    "DriverContext",
    "ExecutionFilter",
    "Exited",
    "Features",
    "Health",
    "Heard",
    "Instance",
    "InstanceBook",
    "InstanceFilter",
    "InstanceHandle",
    "Job",
    "Keeping",
    "KeepingDriver",
    "Leavings",
    "Listing",
    "LiveInstance",
    "Memory",
    "Page",
    "Peer",
    "Process",
    "QueueDepth",
    "Sink",
    "Store",
    "StoreCounts",
    "SubmitPort",
    "Supervised",
    "Watched",
]
