"""The use cases: the only thing entrances call. Authorisation happens here.

Every method that acts for a caller takes a ``Principal``; what it reads and writes is scoped to
that principal's owner, and another owner's id is simply not found. Called from Python, without
one, the caller is the local admin.
"""

from retinue.engine.core import Engine
from retinue.engine.definition import definition_of
from retinue.engine.erasure import Erasure
from retinue.engine.intake import Accepted
from retinue.engine.keys import Keys
from retinue.engine.ledger import Anchor, Verdict
from retinue.engine.outcome import Reply
from retinue.orchestrator.agents import AgentView
from retinue.orchestrator.base import LOCAL_ADMIN
from retinue.orchestrator.instance_views import InstanceView
from retinue.orchestrator.instances import Instances
from retinue.orchestrator.pools import Pools
from retinue.orchestrator.record import Record
from retinue.orchestrator.system import Integration, System
from retinue.orchestrator.tasks import Tasks, reply_view

__all__ = [
    "LOCAL_ADMIN",
    "Accepted",
    "AgentView",
    "Anchor",
    "Erasure",
    "InstanceView",
    "Integration",
    "Orchestrator",
    "Reply",
    "Verdict",
    "definition_of",
    "reply_view",
]


class Orchestrator(Tasks, Record, Instances, Pools, System):
    """What a started system can be asked to do."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.keys = Keys(engine.store)
