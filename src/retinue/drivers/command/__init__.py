"""The ``command`` driver: any CLI of the operator's file, one process per execution."""

from retinue.drivers.command.config import CommandConfig
from retinue.drivers.command.driver import CommandDriver

__all__ = ["CommandConfig", "CommandDriver"]
