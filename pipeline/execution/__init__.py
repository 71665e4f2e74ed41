"""The steps of a pipeline, as an orchestrator calls them: check, prepare, train a stage, and write the summary.

Gives: ``preflight``, ``prepare``, ``run_stage`` (in this process or in several under torchrun), ``finish`` and
``evaluate_checkpoint``. Paths and plain data go in and out.
Must not know: which orchestrator calls it, or what is shown on a screen.
"""
