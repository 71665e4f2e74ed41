"""The report of a comparison: from the arms' measures to numbers, verdicts, figures, pages, and a run in MLflow.

Gives: ``publish``, ``begin_tracking`` and ``end_tracking`` (``publish``).
Must not know: how runs are trained.
"""
