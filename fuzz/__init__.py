"""Throws mutated input at the decoders for as long as one likes: ``make fuzz``."""
