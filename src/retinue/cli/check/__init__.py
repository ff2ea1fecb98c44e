"""``retinue worker check``: whether a program speaks the protocol of ``docs/protocol.md``.

``peer`` starts the program and talks to it, ``rules`` has the rules that one conversation shows,
``endings`` those about how it ends, ``suite`` runs them.
"""
