"""Fast forward and backward passes over given completions.

Gives: ``batch_logprobs`` for a whole batch; ``CompletionRows`` and ``Pack``, which lay completions out without padding;
the language-model head in pieces; faster linear layers and RMS norms.
Must not know: where the completions come from, and what the log-probabilities are for.
"""
