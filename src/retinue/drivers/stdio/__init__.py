"""The ``stdio`` driver: a worker is a program that speaks JSON lines, and lives long.

``driver`` starts one, ``instance`` is one that runs, ``pipe`` knows what is under way on its pipes,
``performance`` is one execution by it, ``calls`` what its agents have others do,
``jvm`` the command line of one on the JVM. The frames are ``retinue.wire``'s.
"""

from retinue.drivers.stdio.config import WorkerConfig
from retinue.drivers.stdio.driver import StdioDriver
from retinue.drivers.stdio.jvm import jvm_command

__all__ = ["StdioDriver", "WorkerConfig", "jvm_command"]
