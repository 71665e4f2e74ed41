"""vLLM as the engine for rollouts: in the training process (``local``) or as a server (``server``).

Gives: ``LocalVllm`` and ``VllmServer``, the checks made before a launch, and ``serve``, which starts a server.
Must not know: rewards, the training loop, or runs. ``worker`` imports nothing else of this project.
"""
