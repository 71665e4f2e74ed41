"""The policy: a causal language model with its tokenizer and prompt template.

Gives: ``Policy``; ``load_policy`` and ``create_policy``; ``check_policy``; LoRA adapters; devices and threads; and, in
``forward/``, the log-probabilities of given tokens (``batch_logprobs``).
Must not know: how completions are sampled, scored and weighed.
"""
