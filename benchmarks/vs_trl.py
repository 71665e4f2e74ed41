"""gradus and TRL's `GRPOTrainer` in turns on identical work: is one faster, and do they compute the same?

    pip install -e '.[bench]'
    python -m benchmarks.vs_trl [--quick] [--cases 'tiny variable' ...] [--runs 5] [--json FILE]

Each case starts a process for each system, with equal weights, prompts, rewards, group size and completion lengths
(`benchmarks/workload.py` explains how lengths are made equal), one thread, fp32. They take turns, A B A B; while one
works the other waits.

Measured are the CPU seconds of a step, in the sampler (`model.generate` in TRL) and in the learner (TRL: from the
scored batch to the end of the step; gradus: `Learner.update`); the completion tokens per second of each; and the
largest resident set of the process, beside the one before the first step (TRL imports more).

TRL is set up with `loss_type="grpo"`, `scale_rewards="none"`, `beta=0` and one update per batch, which together are
`dapo` with `score: mean` in gradus. The whole batch is one pass (`--trl-rows` makes passes smaller, for less memory).
There is no gradient checkpointing and no bf16 (its defaults, both slower here), and no logging, saving or reporting.
gradus has its defaults, without its journal.

Before the turns, both systems make one update from the same weights on the same completions, which TRL has sampled. The
gradients (through Adam's first moment, after clipping) and the parameters are compared. Adam's first update moves each
parameter by about the learning rate, whatever the size of its gradient. So where a gradient is smaller than the
rounding error of its sum in fp32, the two can differ: "beyond 1 % of the step" counts those parameters.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.measuring import Clock, Worker, alternate, machine, ratios, spread, table
from benchmarks.workload import CASES, Case, Device, EndOnSchedule, Gradus, expected, make_policy, peak, waiting
from torch import Tensor

from gradus.pipeline.config import PolicyConfig
from gradus.pipeline.policy.devices import settle_process
from gradus.pipeline.policy.forward.logprobs import batch_logprobs
from gradus.pipeline.types import Rollouts

LR = 1e-4
STEPS = 1000
"""More than any run makes."""


def write_update(path: str, model: torch.nn.Module, optimizer: Any) -> None:
    """The parameters after the first update, and its gradients: ten times Adam's first moment.

    Of a large model only some of the layers, or the files would take longer than all else.
    """
    found: dict[str, Tensor] = {}
    every = 1 if sum(parameter.numel() for parameter in model.parameters()) < 300e6 else 9
    for name, parameter in model.named_parameters():
        layer = re.search(r"layers\.(\d+)\.", name)
        if every > 1 and (layer is None or int(layer[1]) % every):
            continue
        found[name] = parameter.detach().cpu()
        state = optimizer.state.get(parameter)
        found[f"gradient {name}"] = state["exp_avg"].cpu() * 10 if state else torch.zeros_like(found[name])
    torch.save(found, path)


def trl_worker(pipe: Any, case: Case, path: str, rows: int | None, device: Device) -> None:
    """TRL in a process of its own: between two steps, a callback answers and waits for the next turn."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # of TRL's own use of transformers
    from transformers import PrinterCallback, TrainerCallback

    trainer, clock, batches = make_trainer(case, rows or case.prompts * case.group_size, device)

    class Turns(TrainerCallback):
        """One turn is a number of steps; the first is one long and is where the two systems are compared."""

        left = 1

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.left -= 1
            if self.left:
                return
            clock.stop("step")
            if state.global_step == 1:
                write_update(path, trainer.model, trainer.optimizer.optimizer)
                pipe.send({"held": held, "completions": batches[0]})
            else:
                tokens = sum(len(row) for batch in batches for row in batch)
                pipe.send(clock.take() | {"tokens": tokens, "peak": peak(torch.device(device))})
            batches.clear()
            self.left = pipe.recv() or 0
            control.should_training_stop = not self.left
            clock.start("step")

    held = peak(torch.device(device))
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Turns())
    clock.start("step")
    trainer.train()


def make_trainer(case: Case, rows: int, device: Device) -> tuple[Any, Clock, list[list[list[int]]]]:
    """A `GRPOTrainer` that trains ``rows`` completions at a time, its clock, and where its completions will be."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer  # pyrefly: ignore[missing-import]

    policy, clock, batches = make_policy(case.model, device=device), Clock(waiting(torch.device(device))), []
    model: Any = policy.model
    generate, step = model.generate, iter(range(STEPS))
    rewards: list[float | None] = case.rewards().flatten().tolist()

    def scheduled(**inputs: Any) -> Tensor:
        schedule = EndOnSchedule(case.lengths(next(step)), case.prompt_tokens)
        with clock("sample"):
            return generate(**inputs, logits_processor=[schedule])

    model.generate = scheduled

    class Timed(GRPOTrainer):
        """Tells apart the seconds before a scored batch and after it."""

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            with clock("batch"):
                return super()._generate_and_score_completions(inputs)

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        number = len(seen)
        due = [length for group in expected(case, number) for length in group]
        assert [len(row) for row in completion_ids] == due, "a length is not as scheduled"
        seen.append(number)
        batches.append(completion_ids)
        return rewards

    seen: list[int] = []
    texts = [prompt.question for number in range(STEPS) for prompt in case.questions(number)]
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(prefix="vs-trl-"),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=case.prompts * case.group_size // rows,
        num_generations=case.group_size,
        max_completion_length=case.new_tokens,
        max_steps=STEPS,
        learning_rate=LR,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        loss_type="grpo",
        scale_rewards="none",
        beta=0.0,
        shuffle_dataset=False,
        bf16=device == "cuda",
        use_cpu=device == "cpu",
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    dataset = Dataset.from_dict({"prompt": texts})
    trainer = Timed(model, reward, args=config, train_dataset=dataset, processing_class=policy.tokenizer)
    return trainer, clock, batches


def gradus_worker(pipe: Any, case: Case, path: str, device: Device) -> None:
    """gradus in a process of its own: one update on TRL's completions, then turns of whole steps."""
    settle_process(PolicyConfig(path=case.name, threads=1))  # as the trainer does
    system = Gradus(case, make_policy(case.model, device=device), lr=LR, autocast=device == "cuda")
    held = peak(torch.device(device))
    system.update(given(system, pipe.recv()), 1)
    write_update(path, system.policy.model, system.learner.optimizer)
    pipe.send({"held": held})
    number = 1
    while steps := pipe.recv():
        for _ in range(steps):
            system.step(number)
            number += 1
        pipe.send(system.clock.take() | {"peak": peak(torch.device(device))})


def given(system: Gradus, completions: list[list[int]]) -> Rollouts:
    """Completions that were sampled elsewhere, for the first step's prompts, as a scored batch."""
    case, prompts = system.case, system.case.questions(0)
    longest = max(map(len, completions))
    tokens = torch.tensor([row + [system.policy.template.pad_id] * (longest - len(row)) for row in completions])
    tokens_PKT = tokens.view(case.prompts, case.group_size, longest)
    lengths_PK = torch.tensor([len(row) for row in completions]).view(case.prompts, case.group_size)
    rollouts = Rollouts(
        prompts=prompts,
        prompt_tokens=[system.policy.encode_prompt(prompt) for prompt in prompts],
        tokens_PKT=tokens_PKT,
        mask_PKT=torch.arange(longest) < lengths_PK[..., None],
        rollout_logprobs_PKT=torch.zeros(tokens_PKT.shape),
        truncated_PK=torch.zeros(lengths_PK.shape, dtype=torch.bool),
        texts=[[""] * case.group_size] * case.prompts,
    )
    logprobs_PKT = batch_logprobs(system.policy, rollouts, system.options.temperature, system.config.token_budget)
    return system.score(replace(rollouts, rollout_logprobs_PKT=logprobs_PKT))


def compare_updates(paths: dict[str, str]) -> dict[str, float]:
    """How far the first updates of the two systems lie apart."""
    ours, theirs = (torch.load(paths[name], mmap=True) for name in ("gradus", "TRL"))
    assert ours.keys() == theirs.keys(), "the two systems hold different parameters"
    gradients = [name for name in ours if name.startswith("gradient ")]
    parameters = [name for name in ours if not name.startswith("gradient ")]
    moved = [(ours[name] - theirs[name]).abs() for name in parameters]
    return {
        "gradient": max(float((ours[name] - theirs[name]).abs().max()) for name in gradients)
        / max(float(theirs[name].abs().max()) for name in gradients),
        "parameter": max(float(part.max()) for part in moved),
        "beyond": sum(int((part > 0.01 * LR).sum()) for part in moved) / sum(part.numel() for part in moved),
    }


def measure(case: Case, runs: int, trl_rows: int | None, device: Device = "cpu") -> dict[str, Any]:
    """One case: the first updates compared, a warm-up turn each, then ``runs`` turns each.

    On a GPU both learn with bfloat16 products, and what counts is wall time (the keys with `wall`).
    """
    with tempfile.TemporaryDirectory(prefix="vs-trl-") as scratch:
        paths = {name: f"{scratch}/{name}" for name in ("gradus", "TRL")}
        trl = Worker(trl_worker, case, paths["TRL"], trl_rows, device)
        first = trl.answer()
        gradus = Worker(gradus_worker, case, paths["gradus"], device)
        workers = {"gradus": gradus, "TRL": trl}
        held = {"TRL": first["held"], "gradus": gradus.ask(first["completions"])["held"]}
        update = compare_updates(paths)
    alternate(workers, 1, 1)
    turns = alternate(workers, runs, case.steps_a_turn)
    for worker in workers.values():
        worker.stop()
    for answer in turns["TRL"]:
        answer["learn"] = answer["step"] - answer["batch"]
        answer["learn wall"] = answer["step wall"] - answer["batch wall"]
    return {"case": case.name, "steps": case.steps_a_turn, "turns": turns, "held": held, "update": update}


def system_row(result: dict[str, Any], name: str) -> list[str]:
    """One system's figures in one case."""
    turns, steps = result["turns"][name], result["steps"]
    seconds = {part: [turn[part] / steps for turn in turns] for part in ("step", "step wall", "sample", "learn")}
    speed = [statistics.median(turn["tokens"] / turn[part] for turn in turns) for part in ("sample", "learn")]
    megabytes = [turns[-1]["peak"] / 1e6, result["held"][name] / 1e6]
    return [
        result["case"],
        name,
        spread(seconds["step"], ".3f"),
        f"{statistics.median(seconds['step wall']):.3f}",
        spread(seconds["sample"], ".3f"),
        spread(seconds["learn"], ".3f"),
        *(f"{value:,.0f}" for value in speed),
        "{:,.0f} ({:,.0f})".format(*megabytes),
    ]


def ratio_row(result: dict[str, Any]) -> list[str]:
    """TRL against gradus, turn by turn, and how far their first updates lie apart."""
    ours, theirs = result["turns"]["gradus"], result["turns"]["TRL"]
    cells = [
        spread(ratios([turn[part] for turn in theirs], [turn[part] for turn in ours])) + " x"
        for part in ("step", "sample", "learn")
    ]
    peaks, held, update = [theirs[-1]["peak"], ours[-1]["peak"]], result["held"], result["update"]
    above = (peaks[0] - held["TRL"]) / max(peaks[1] - held["gradus"], 1)
    differences = [f"{update['gradient']:.1e}", f"{update['parameter']:.1e}", f"{update['beyond']:.4%}"]
    return [result["case"], *cells, f"{peaks[0] / peaks[1]:.2f} x", f"{above:.2f} x", *differences]


def report(results: list[dict[str, Any]]) -> None:
    """Both tables and what they were measured on."""
    header = ["case", "system", "CPU s a step", "wall", "sampling", "learning", "sampled tok/s", "learned tok/s"]
    rows = [system_row(result, name) for result in results for name in ("gradus", "TRL")]
    print(table([*header, "peak MB (held before)"], rows), end="\n\n")
    header = ["TRL / gradus", "step", "sampling", "learning", "peak", "peak above held"]
    header += ["gradient, relative", f"parameter (lr {LR:g})", "beyond 1 % of the step"]
    print(table(header, [ratio_row(result) for result in results]))
    print("\nMedian (smallest..largest); ratios are taken turn by turn, tokens are those of completions.")
    print(machine("torch", "transformers", "trl"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--runs", type=int, default=5, help="turns of either system")
    parser.add_argument("--quick", action="store_true", help="the tiny cases, two turns")
    parser.add_argument("--trl-rows", type=int, help="completions in one of TRL's passes; default: the whole batch")
    parser.add_argument("--json", type=Path, help="also write every turn's figures here")
    options = parser.parse_args()
    names = [name for name in options.cases if not options.quick or name.startswith("tiny")]
    results = []
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        results.append(measure(CASES[name], 2 if options.quick else options.runs, options.trl_rows))
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    report(results)


if __name__ == "__main__":
    main()
