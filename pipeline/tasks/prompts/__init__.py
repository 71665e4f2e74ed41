"""What was found out about every prompt, and which prompts are trained on because of it.

Gives: ``PromptMemory`` and ``remembered``, what was measured of each group (``memory``).
Must not know: how a completion is sampled, scored or trained on.
"""
