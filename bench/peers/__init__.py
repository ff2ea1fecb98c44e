"""Other systems doing the same thing, in an environment of their own (``.venv-bench``).

Each script says in its docstring which settings it gives its system and why: the best documented
ones that still make an answered task durable.
"""
