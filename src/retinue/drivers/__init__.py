"""One module per kind of agent; none knows another."""
