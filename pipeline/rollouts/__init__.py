"""Rollouts: the engines that generate completions, in this process (``builtin``), in vLLM, or on a vLLM server.

Every engine returns batches of one form, and every batch is checked to come from the weights that are being trained.

Gives: ``Sampler`` and ``sampler_for``, and ``DrawKey`` and ``sample`` of the built-in engine.
Must not know: rewards, the training loop, or runs. ``vllm.worker`` also runs in vLLM's own processes.
"""
