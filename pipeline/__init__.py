"""The core: everything that one training pipeline needs, without any algorithm and any orchestrator.

Gives: the packages below, from ``common`` up to ``execution``, which trains a stage when it is called; and ``types``,
``stage`` and ``advantages``, which algorithms are written with.
Must not know: which algorithm it serves, and which orchestrator calls it.
"""
