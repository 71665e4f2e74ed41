"""Runs on disk: what was asked for, what is done, and what may be reused.

Gives: ``RunFolder``, checkpoints and their records, a stage's identity, the plan of a launch, forks, and the check of
everything that a run has written.
Must not know: how a stage is trained, or who calls it. Nothing here imports torch.
"""
