"""The services around us: Trace takes every contract, MemAgent compresses sessions.

Each is off until its URL is set; nothing here is imported before.
"""
