"""Tracking: an append-only journal in the run folder, and a child process that delivers it to MLflow.

Gives: ``Journal`` to write events; ``start_uploader`` and ``sync_run`` to deliver them; ``Position`` and ``Report`` to
know how far delivery is; ``serve_ui``; ``check_tracking``; in ``pages``, what to open there.
Must not know: how a metric is computed. Training never waits for tracking, and never fails because of it.
"""
