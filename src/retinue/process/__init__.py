"""Agent processes: how they are started, read, written to and stopped."""
