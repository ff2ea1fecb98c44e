"""Crash the server at random moments, then compare what it promised with what it kept."""
