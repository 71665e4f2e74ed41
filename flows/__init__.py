"""Orchestration: from what is asked for to a run that is trained, recorded and shown.

Gives: the checked configuration and the run folder (``open_run``, ``resume_run``, ``fork_run``), one launch of a run
(``launch``), the order of its work (``order``), the same as a Prefect flow (``staged``), and the trial of a checkpoint
(``inference``). The command line and the Python API both call these.
Must not know: the words of the command line, and how a stage is trained.
"""
