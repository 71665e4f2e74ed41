"""What was found out about every prompt, and which prompts are trained on because of it.

Gives: ``PromptMemory``, what was measured of each group (``memory``); ``pooled`` and ``rates``, what that says of each
prompt (``rates``); ``selected``, the prompts that a stage may draw, and ``Curriculum``, which draws them by pass rate;
``ordered``, an order of them.
Must not know: how a completion is sampled, scored or trained on.
"""
