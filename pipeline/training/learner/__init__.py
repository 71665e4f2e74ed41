"""From the weights of completions to an optimizer step: weighted log-likelihood, backward pass, update.

Gives: ``Learner``, the loss functions, the critics, and how their state becomes files.
Must not know: where batches come from, or which algorithm weighed them.
"""
