"""The one engine: everything that performs a task goes through ``intake.submit``."""
