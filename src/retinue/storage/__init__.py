"""The ledger: SQLite and PostgreSQL behind one protocol.

``program`` decides what a batch of intents does to the rows, without doing any I/O; ``sqlite``
and ``postgres`` only carry its statements out. ``tables`` and ``sql`` hold what both share.
"""
