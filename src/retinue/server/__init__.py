"""The HTTP door: routes, authentication, streams, and running it. It talks to the orchestrator."""
