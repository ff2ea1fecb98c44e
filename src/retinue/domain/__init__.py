"""Records and decisions. Nothing here does I/O."""
