"""What stands before and after a call of an agent, as pure decisions.

``breaker``: may it be called at all; ``rate``: how often; ``cache``: need it be called. What a run
may spend is ``domain.budget``. None of them waits, logs or knows a driver: loops ask and act, and
every driver gets all of them.
"""

from retinue.engine.guard.breaker import Breaker, Circuit
from retinue.engine.guard.cache import Cache, cache_key
from retinue.engine.guard.rate import Bucket, Callers

__all__ = ["Breaker", "Bucket", "Cache", "Callers", "Circuit", "cache_key"]
