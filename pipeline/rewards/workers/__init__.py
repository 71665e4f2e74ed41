"""Rewards that may hang, crash or fill the memory, in processes that can be killed.

Gives: ``WorkerPool``, its batches, and ``IsolatedReward``.
Must not know: what the scores are for, or which rewards need such a process.
"""
