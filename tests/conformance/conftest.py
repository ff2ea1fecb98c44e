"""The suites of ``retinue.testing`` are tests too: their assertions explain themselves."""

import pytest

for part in ("samples", "queue", "runs", "records", "lists", "suite"):
    pytest.register_assert_rewrite(f"retinue.testing.store_{part}")
