"""Estimates of what a policy, a stage and a machine will do, made before compute is spent.

Some are measured on the policy itself (``probe``, ``diagnosis``, ``stage_cost``). The others are computed from sizes
and data sheets (``memory``, ``step_time``, ``model_size``, ``hardware``), without torch.

Gives: ``probe``, ``diagnose``, ``stage_cost``; ``memory``, ``pace``, ``model_size`` and ``parse_hardware``.
Must not know: what is done with an estimate, such as advice, or how it is shown.
"""
