"""Runs on other machines, through Prefect's work pools.

Gives: registering a pipeline and submitting a run (``deployments``: ``deploy``, ``submit``), following a run to its end
(``follow``: ``follow``), and what a worker starts for a run (``worker``: ``work_on_flow_run``).
Must not know: how stages are trained, and comparisons.
"""
