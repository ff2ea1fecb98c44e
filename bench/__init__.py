"""What ``make bench`` runs: Retinue, a hand-written probe and its peers, in turn and side by side.

A *scenario* is a question, a *contender* is one way to answer it: a fresh process that runs for a
few seconds and prints one line of JSON. Absolute numbers belong to the machine and the minute;
what is compared, and held to targets, are ratios within one round.
"""
