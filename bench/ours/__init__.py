"""Retinue's own contenders: each drives a public door of the product as a user would."""
