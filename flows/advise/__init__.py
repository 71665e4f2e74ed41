"""Advice before training: a probe of the policy, rules that decide which stages fit, and an estimate of their cost.

Gives: the probe and its advice (``advise``: ``find_probed_policy``, ``advise``, ``costs``), the rules (``rules``:
``decide``), the advised configuration as a file (``rewrite``), the report in the terminal (``screen``:
``print_report``) and as a figure (``plot``).
Must not know: the command line, and how stages are trained.
"""
