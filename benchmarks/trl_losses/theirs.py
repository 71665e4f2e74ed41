"""TRL's half: its trainers, as they are, on our completions and rewards."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.trl_losses.batch import TEXTS, Found, Policies, tiny
from benchmarks.trl_losses.cases import GROUP, LONGEST, PROMPTS, Case

from gradus.pipeline.types import Rollouts

SHARES = ("clip_ratio/region_mean", "cispo_clip_ratio")


def of_trl(case: Case, policies: Policies, rollouts: Rollouts) -> Found:
    """The gradient of TRL's loss."""
    with tempfile.TemporaryDirectory() as folder:
        policies.reference.save(Path(folder))
        trainer, batch = WAYS.get(case.stage, groups)(case, policies, rollouts, folder)
        trainer.model.load_state_dict(policies.now.model.state_dict())
        trainer.current_gradient_accumulation_steps = 1  # as the training loop would set it
        loss = case.times(rollouts) * trainer.compute_loss(trainer.model, batch)
        loss.backward()
    gradient = {name: value.grad for name, value in trainer.model.named_parameters() if value.grad is not None}
    measured = trainer._metrics["train"]
    bounded = next((measured[name][-1] for name in SHARES if name in measured), None)
    return Found(gradient, float(loss.detach()), bounded)


def arguments(folder: str, rows: int) -> dict[str, Any]:
    """The options that have nothing to do with the loss."""
    silent = {"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    exact = {"bf16": False, "use_cpu": True, "gradient_checkpointing": False}
    return silent | exact | {"output_dir": folder, "per_device_train_batch_size": rows}


def groups(case: Case, policies: Policies, rollouts: Rollouts, folder: str) -> tuple[Any, Any]:
    """A `GRPOTrainer`, and the batch that it makes of our completions and rewards."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer  # pyrefly: ignore[missing-import]

    assert rollouts.rewards_PK is not None
    rewards: list[float | None] = rollouts.rewards_PK.flatten().tolist()
    said = rollouts.rollout_logprobs_PKT if rollouts.engine_logprobs_PKT is None else rollouts.engine_logprobs_PKT
    masks = rollouts.mask_PKT.flatten(0, 1)
    given = {
        "prompt_ids": [tokens for tokens in rollouts.prompt_tokens for _ in range(GROUP)],
        "completion_ids": [row[m].tolist() for row, m in zip(rollouts.tokens_PKT.flatten(0, 1), masks, strict=True)],
        "logprobs": [row[m].tolist() for row, m in zip(said.flatten(0, 1), masks, strict=True)],
    }
    model: Any = tiny(0.0).model
    model.load_state_dict((policies.now if case.sampler == "engine" else policies.sampler).model.state_dict())
    model.config._name_or_path = folder  # where TRL takes its reference from
    # With two iterations TRL keeps the log-probabilities of the policy that it has when the completions come.
    options = {"num_generations": GROUP, "num_iterations": 2, "max_completion_length": LONGEST}
    texts = [prompt.question for prompt in rollouts.prompts for _ in range(GROUP)]
    trainer = GRPOTrainer(
        model,
        lambda **_: rewards,
        args=GRPOConfig(**arguments(folder, len(masks)), **options, **case.theirs),
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=policies.now.tokenizer,
        rollout_func=lambda *_: dict(given),
    )
    model.train()
    if case.sampler == "engine":
        trainer.use_vllm, trainer._last_loaded_step = True, trainer.state.global_step
    return trainer, trainer._generate_and_score_completions([{"prompt": text} for text in texts])


def preferences(case: Case, policies: Policies, rollouts: Rollouts, folder: str) -> tuple[Any, Any]:
    """A `DPOTrainer`, and the batch that its collator makes of our pairs."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer  # pyrefly: ignore[missing-import]

    tokens, masks = rollouts.tokens_PKT, rollouts.mask_PKT
    pairs = [[row[m].tolist() for row, m in zip(*pair, strict=True)] for pair in zip(tokens, masks, strict=True)]
    batch = [
        {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        for prompt, (chosen, rejected) in zip(rollouts.prompt_tokens, pairs, strict=True)
    ]
    texts = dict(zip(("prompt", "chosen", "rejected"), map(list, zip(*TEXTS, strict=True)), strict=True))
    model: Any = tiny(0.0).model
    trainer = DPOTrainer(
        model,
        policies.reference.model,
        args=DPOConfig(**arguments(folder, PROMPTS), **case.theirs),
        train_dataset=Dataset.from_dict(texts),
        processing_class=policies.now.tokenizer,
    )
    model.train()
    return trainer, trainer.data_collator(batch)


def distilled(case: Case, policies: Policies, rollouts: Rollouts, folder: str) -> tuple[Any, Any]:
    """An `IWOPDTrainer`, and our completions as it would have them from its own student."""
    import torch
    from datasets import Dataset
    from torch.nn.utils.rnn import pad_sequence
    from trl.experimental.iw_opd import IWOPDConfig, IWOPDTrainer  # pyrefly: ignore[missing-import]

    prompts = [torch.tensor(tokens) for tokens in rollouts.prompt_tokens for _ in range(GROUP)]
    pairs = zip(rollouts.tokens_PKT.flatten(0, 1), rollouts.mask_PKT.flatten(0, 1), strict=True)
    completions = [row[mask] for row, mask in pairs]
    rows = [torch.cat(pair) for pair in zip(prompts, completions, strict=True)]
    labels = [torch.cat([torch.full_like(p, -100), c]) for p, c in zip(prompts, completions, strict=True)]
    batch = {
        "input_ids": pad_sequence(rows, True, policies.now.template.pad_id),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], True, 0),
        "labels": pad_sequence(labels, True, -100),
    }
    model, teacher = tiny(0.0).model, policies.reference.model
    teacher.config._name_or_path = folder  # where TRL takes the teacher's tokenizer from
    trainer = IWOPDTrainer(
        model,
        teacher,
        args=IWOPDConfig(**arguments(folder, len(rows)), **case.theirs),
        train_dataset=Dataset.from_dict({"messages": [question for question, *_ in TEXTS]}),
        processing_class=policies.now.tokenizer,
    )
    return trainer, batch


WAYS = {"dpo": preferences, "opd": distilled}
"""Stage -> what makes TRL's trainer and its batch, where it is not a group-relative one."""
