"""TRL's `GRPOTrainer` as an arm of a comparison: the same checkpoint, prompts, group size, reward and rollouts.

    gradus compare quickstart --name q                                     # makes the checkpoints to start from
    python -m benchmarks.trl_arm runs/q --like dapo --seeds 0 1 2          # writes runs/q/external/trl-grpo-seed-N.json
    gradus compare quickstart --name q --external runs/q/external          # the same command, with one arm more

``--like`` names the arm of the comparison that is copied: the prompts of its stage in their order, prompts and
completions per step, steps, learning rate with its warm-up, betas, gradient clipping, sampling, and the steps of its
evaluations. Everything else is TRL's default, above all the algorithm: `loss_type="dapo"`, `scale_rewards="group"`,
clip 0.2, beta 0 in TRL 1.16 (``--set KEY=VALUE`` changes any option of `GRPOConfig`). Three options differ from its
defaults, because they change only the cost: no bf16, no gradient checkpointing, the whole batch in one pass. Accuracy
is measured by gradus, with the same code on the same prompts. Seconds include the evaluations of the learning curve, as
they do for an arm. A seed that has a result is not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from gradus.flows.compare.measures import CURVES, MOST_POINTS, start_of, thinned
from gradus.flows.compare.plan.folder import arm_run
from gradus.pipeline.common.files import write_json
from gradus.pipeline.policy.devices import settle_process
from gradus.pipeline.policy.loading import load_policy
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.rewards import RewardSuite
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.tasks.data import all_prompts
from gradus.pipeline.tasks.prompt_order import PromptStream
from gradus.pipeline.tasks.task import load_task
from gradus.pipeline.training.batches import sampling_of
from gradus.pipeline.training.evaluation import evaluate
from gradus.stages import discover

LOGGED = {"entropy": "entropy", "length": "completions/mean_length", "reward": "reward"}
"""Our name of a curve -> TRL's."""
assert LOGGED.keys() == CURVES.keys()


class Arm:
    """One seed: what TRL trains on, and what is measured meanwhile."""

    def __init__(self, folder: Path, like: str, seed: int):
        configs = [stage.config for stage in discover().values()]
        self.run = RunFolder(folder / arm_run(like, seed), configs)
        self.base = RunFolder(folder / arm_run("base", seed), configs)
        index = len(self.base.config.stages)
        if len(self.run.config.stages) != index + 1:
            raise SystemExit(f"{like} trains several stages; name an arm that is one algorithm alone")
        self.config, self.stage = self.run.config, self.run.config.stages[index]
        self.options = sampling_of(self.config, self.stage)
        self.task = load_task(self.run.data_dir)
        settle_process(self.config.policy)
        start = self.base.result(index - 1)
        if start is None:
            raise SystemExit(f"{self.base.path} is not complete; run the comparison first")
        self.policy: Policy = load_policy(start["checkpoint"], self.config.policy)
        self.suite = RewardSuite(self.config.rewards, self.config.reward_workers)
        stream = PromptStream(self.task.train, self.config.seed, self.stage.label)
        self.prompts = stream.at(0, self.stage.steps * self.stage.prompts_per_step)
        self.known = {prompt.id: prompt for prompt in self.prompts}
        self.tokens, self.began = 0, 0.0
        self.curve: list[list[float]] = []
        self.logged: dict[str, list[list[float]]] = {name: [] for name in LOGGED}

    @property
    def rollouts_per_step(self) -> int:
        return self.stage.prompts_per_step * self.stage.group_size

    def text(self, question: str) -> str:
        """A prompt as TRL shall tokenise it; it must come to the same tokens as ours."""
        if self.policy.template.kind != "plain":
            raise SystemExit("a chat template is not taken over; use a policy with a plain one")
        return self.policy.template.text.replace("{question}", question)

    def reward(self, completion_ids: list[list[int]], prompt_id: list[str], **_: Any) -> list[float | None]:
        """The configuration's weighted sum; None where a verifier failed."""
        self.tokens += sum(map(len, completion_ids))
        prompts = [self.known[each] for each in prompt_id]
        scores = self.suite.score(prompts, [[self.policy.decode(row)] for row in completion_ids])
        weights = {reward.label: reward.weight for reward in self.config.rewards}
        totals = [sum(weights[label] * rows[n][0] for label, rows in scores.components.items() if weights[label])
                  for n in range(len(prompts))]  # fmt: skip
        return [None if math.isnan(total) else total for total in totals]

    def measure_validation(self, step: int) -> None:
        """One point of the learning curve."""
        accuracy = evaluate(self.policy, all_prompts(self.task, "validation"), self.suite, self.config).accuracy
        self.curve.append([step * self.rollouts_per_step, accuracy or 0.0])

    def result(self, label: str, seed: int, options: dict[str, Any]) -> dict[str, Any]:
        """Everything in the form that `gradus compare --external` reads; see flows/compare/measures.py."""
        seconds = time.perf_counter() - self.began
        final = evaluate(self.policy, all_prompts(self.task, "heldout"), self.suite, self.config)
        rollouts, start = self.stage.steps * self.rollouts_per_step, start_of(self.base)
        stage = {"name": label, "algorithm": "GRPOTrainer", "steps": self.stage.steps, "rollouts": rollouts}
        stage |= {"lr": options["learning_rate"], "schedule": options["lr_scheduler_type"]}
        return {
            "arm": label, "seed": seed, "start": start, "curve": [[0, start["validation"]], *self.curve],
            **{name: thinned(points, MOST_POINTS) for name, points in self.logged.items()},
            "marks": [[rollouts, f"{label} ends"]], "rollouts": rollouts, "tokens": self.tokens, "seconds": seconds,
            "accuracy": final.accuracy, "heldout": final.by_prompt(), "options": options,
            "stages": [stage | {"accuracy_after": final.accuracy}],
        }  # fmt: skip


def trainer_of(arm: Arm, seed: int, changes: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """TRL's trainer for an arm, and the options that it was given."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer  # pyrefly: ignore[missing-import]

    stage, options = arm.stage, arm.options
    rate = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}[stage.schedule]
    given: dict[str, Any] = {
        "per_device_train_batch_size": arm.rollouts_per_step,
        "num_generations": stage.group_size,
        "max_steps": stage.steps,
        "max_completion_length": options.max_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "learning_rate": stage.lr,
        "lr_scheduler_type": rate,
        "warmup_steps": stage.warmup,
        "adam_beta1": stage.betas[0],
        "adam_beta2": stage.betas[1],
        "weight_decay": stage.weight_decay,
        "max_grad_norm": stage.grad_clip,
        "seed": seed,
    } | changes
    fixed = {"shuffle_dataset": False, "bf16": False, "use_cpu": arm.policy.device.type == "cpu"}
    fixed |= {"gradient_checkpointing": False, "logging_steps": 1, "save_strategy": "no", "report_to": "none"}
    config = GRPOConfig(output_dir=tempfile.mkdtemp(prefix="trl-arm-"), disable_tqdm=True, **fixed, **given)
    texts = [arm.text(prompt.question) for prompt in arm.prompts]
    tokenizer = arm.policy.tokenizer
    assert tokenizer(texts[0])["input_ids"] == arm.policy.encode_prompt(arm.prompts[0].question)
    data = Dataset.from_dict({"prompt": texts, "prompt_id": [prompt.id for prompt in arm.prompts]})
    model: Any = arm.policy.model
    trainer = GRPOTrainer(model, arm.reward, args=config, train_dataset=data, processing_class=tokenizer)

    class Watch(TrainerCallback):
        """Evaluates as the arm that is copied does, and keeps TRL's own curves."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            step = state.global_step
            if step % stage.eval_every == 0 or step == stage.steps:
                arm.measure_validation(step)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            for name, theirs in LOGGED.items():
                if theirs in (logs or {}):
                    arm.logged[name].append([state.global_step * arm.rollouts_per_step, float(logs[theirs])])

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Watch())
    return trainer, given


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", type=Path, help="the comparison's folder, such as runs/quickstart-compare")
    parser.add_argument("--like", default="dapo", help="the arm that is copied")
    parser.add_argument("--label", default="trl-grpo", help="what the report calls the arm")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of GRPOConfig")
    options = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)  # of TRL's own use of transformers
    changes = {key: _value(text) for key, _, text in (each.partition("=") for each in options.set)}
    for seed in options.seeds:
        file = options.comparison / "external" / f"{options.label}-seed-{seed}.json"
        if file.exists():
            print(f"{file} is there already", flush=True)
            continue
        arm = Arm(options.comparison.absolute(), options.like, seed)
        trainer, given = trainer_of(arm, seed, changes)
        torch.manual_seed(seed)
        arm.began = time.perf_counter()
        trainer.train()
        result = arm.result(options.label, seed, given)
        arm.suite.close()
        write_json(file, result)
        print(f"{file}: held-out accuracy {result['accuracy']:.3f} in {result['seconds']:.0f} s", flush=True)


def _value(text: str) -> Any:
    """A number or true/false where it reads as one, text otherwise."""
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    main()
