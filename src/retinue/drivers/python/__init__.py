"""The ``python`` driver: agents that are Python objects in this process."""

from retinue.drivers.python.driver import PythonDriver

__all__ = ["PythonDriver"]
