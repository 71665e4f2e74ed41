"""One launch of a comparison: its jobs are trained side by side, with or without Prefect, here or on a Ray cluster.

Gives: ``ComparisonRequest`` and ``run_comparison`` (``request``), ``open_comparison`` and ``launch`` (``launch``).
Must not know: the command line, and how a claim is decided.
"""
