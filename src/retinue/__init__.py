"""Retinue: a durable runtime for AI agents."""

__all__: list[str] = []
