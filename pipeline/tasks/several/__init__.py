"""Several tasks of one pipeline: their data side by side, no question held out in one and trained on in another, and
batches that mix them.

Gives: ``build_tasks``, ``load_tasks``, ``MixedSchedule``. Must not know: policies, rewards, training.
"""
