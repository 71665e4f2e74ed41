"""The loop that every algorithm shares, and everything that it calls.

Gives: ``Trainer`` and the ``Setup`` that it is given; ``evaluate``, the accuracy of a policy on prompts.
Must not know: the name of any algorithm, Prefect, MLflow, or how a run folder is chosen.
"""
