"""Comparisons: arms trained from the same checkpoint, on the same budget, over several seeds.

``plan`` decides what is compared, ``run`` trains it, ``report`` says what the results mean.

Gives: ``run.request`` (``ComparisonRequest``, ``run_comparison``), and ``measures``, the form of an arm's results.
Must not know: the command line, and any algorithm except by the names in the claims.
"""
