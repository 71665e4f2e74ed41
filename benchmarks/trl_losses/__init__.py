"""gradus's losses against TRL's own code on one batch: the gradient of every parameter, and the value of the loss.

    pip install -e '.[bench]'
    python -m benchmarks.trl_losses

Both systems hold the same small model. The completions of a batch were sampled by another policy, so that ratios are
not 1 and their bounds hold some of them; a third policy is the reference, or the teacher. From there either system goes
its own way:

- gradus from the scored batch through its signals and its stage's weights to `Learner.update`, where the gradient is
  read in place of the optimizer's step;
- TRL from `GRPOTrainer._generate_and_score_completions`, which gets the same completions from a `rollout_func` and the
  same rewards from a reward function, and makes advantages, masks, and old and reference log-probabilities of them, to
  `compute_loss`; for DPO from its collator, for OPD from padded completions. Where another engine is to have sampled,
  it is told that vLLM did, which need not be there for completions that are given.

The difference of the gradients is that of the parameter where it is largest: the norm of the difference over the norm
of TRL's. The loss is what gradus reports as `update/loss` where that is the literal loss; for GSPO and DPO, whose
weights are derivatives, it is the paper's formula on the scores that the stage was given. What is bounded: the share of
ratios that a bound holds, or of what a mask leaves out.

A second table has settings that look alike and are not the same. The exit code is 1 where the first table has a
difference above the bound, or the second has none.
"""
