"""What the pretend device computes beside what the CPU computes: ``pretend_runs.py FOLDER`` prints it as JSON.

A process of its own, because PyTorch takes on no further device after its first backward pass.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pretend_device import pretend_device, waits
from safetensors.torch import load_file
from sampled_models import ARCHITECTURES, DRAW, make_endings_likely, policy_with
from small_pipeline import TASK, launch, pipeline
from tiny_policies import tiny_policy

from gradus.pipeline.common.observer import Observer
from gradus.pipeline.config import SamplingConfig, StageConfig
from gradus.pipeline.execution.stage import run_stage
from gradus.pipeline.policy import loading
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.rollouts.builtin import sample
from gradus.pipeline.runs.run_folder import RESULT_FILE, RunFolder
from gradus.pipeline.training.learner.learner import Learner
from gradus.pipeline.training.learner.optimizer_state import optimizer_state, restore_optimizer
from gradus.pipeline.types import Prompt, Rollouts
from gradus.stages import discover

PROMPTS = [Prompt(f"p{n}", f"{n} + {n} =" + " 1" * (n % 3), "1") for n in range(6)]
LLAMA = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 2}  # fmt: skip
PAPER_VAPO = {"stage": "vapo", "variant": "paper", "critic_warmup": 1, "updates_per_batch": 2, "group_size": 3,
              "name": "tokens", "steps": 2}  # fmt: skip
LIMITED = {"max_tokens": 7, "top_p": 0.9, "top_k": 20, "min_tokens": 3, "stop": ["1"], "ban": [7]}
CHAINS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "packed": (
        {"architecture": {"model_type": "llama", **LLAMA}},
        [
            {"stage": "sft"},
            {
                "stage": "gfpo",
                "group_size": 3,
                "async": 1,
                "steps": 2,
                "gradient_checkpointing": True,
                "minibatches": 2,
            },
            {"stage": "gfpo", "name": "kept", "variant": "paper", "group_size": 3, "keep": (2, 2, 2, 3)},
            {"stage": "dapo", "group_size": 3, "sampling": LIMITED},
            {"stage": "dapo", "name": "shaped", "variant": "paper", "group_size": 3, "token_budget": 64},
            {"stage": "srpo", "group_size": 3},
            {"stage": "srpo", "name": "history", "variant": "paper", "group_size": 3},
            {"stage": "vapo", "group_size": 3, "old_logprobs": "recompute"},
            PAPER_VAPO,
        ],
    ),
    "padded": ({"architecture": {"model_type": "gemma2", "head_dim": 8, **LLAMA}}, [PAPER_VAPO]),
    "adapters": ({"architecture": {"model_type": "llama", **LLAMA}, "lora": {"rank": 4, "alpha": 8}}, [PAPER_VAPO]),
}
BREVITY = {"reward": "length", "name": "brevity", "params": {"max": 4, "falloff": 5}}
"""A reward that a new policy earns in part, so that every stage has something to learn."""


def on(device: torch.device) -> None:
    """Put every policy that is made from now on onto this device."""
    loading.pick_device = lambda wanted: torch.device("cpu") if wanted == "cpu" else device


def trained(folder: Path, chain: str, device: torch.device) -> RunFolder:
    on(device)
    policy, stages = CHAINS[chain]
    config = pipeline(
        [{"steps": 1, "prompts_per_step": 2, **stage} for stage in stages],
        policy={**policy, "device": "auto"},
        rewards=[{"reward": "exact_answer"}, BREVITY],
        sampling={"max_tokens": 7},
        checkpoints={"every_steps": 1, "keep": 2},
        task={**TASK, "heldout": 4, "validation": 0},
    )
    return launch(folder, config, f"{chain}-{device.type}")


def differences(one: RunFolder, other: RunFolder) -> dict[str, list[float]]:
    """Label of a stage -> the largest difference of what it left (weights, and all that a resume needs), and how far
    the stage moved the weights."""
    found = {}
    for index, stage in enumerate(one.config.stages):
        ends, others = (Path((run.result(index) or {})["checkpoint"]) for run in (one, other))
        start = Path(((one.result(index - 1) if index else one.start()) or {})["checkpoint"])
        apart = max(
            _apart(load_file(ends / name), load_file(others / name))
            for name in ("model.safetensors", "resume/state.safetensors")
        )
        found[stage.label] = [
            apart,
            _apart(load_file(ends / "model.safetensors"), load_file(start / "model.safetensors")),
        ]
    return found


def _apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((value.float() - other[name].float()).abs().max()) for name, value in one.items() if value.numel())


def resumed(run: RunFolder) -> list[str]:
    """The content hashes of a last stage that ran through, and that was resumed after its first step."""
    index = len(run.config.stages) - 1
    parent = ((run.result(index - 1) if index else run.start()) or {})["checkpoint"]
    stage = discover()[run.config.stages[index].stage]
    before = (run.result(index) or {})["content"]
    (run.stage_dir(index) / RESULT_FILE).unlink()
    shutil.rmtree(run.stage_dir(index) / "checkpoints" / "step-000002")
    return [before, run_stage(run, index, parent, stage, Observer())["content"]]


def sampled(device: torch.device) -> dict[str, list[Any]]:
    """Every engine's completions: whether they are the same, and the largest difference of log-probabilities and of the
    prompts' states."""
    found: dict[str, list[Any]] = {}
    for name, architecture in ARCHITECTURES.items():
        policies = [_policy(architecture, name, place) for place in (torch.device("cpu"), device)]
        for draw, nucleus in ((DRAW, {"top_p": 0.9, "top_k": 20, "temperature": 0.8}), (None, {})):
            options = SamplingConfig(max_tokens=8, token_budget=200, **nucleus)
            here, there = [sample(policy, PROMPTS, 3 if draw else 1, options, draw, True) for policy in policies]
            assert here.prompt_states_PD is not None and there.prompt_states_PD is not None
            close = [here.rollout_logprobs_PKT - there.rollout_logprobs_PKT,
                     here.prompt_states_PD - there.prompt_states_PD.cpu()]  # fmt: skip
            same = torch.equal(here.tokens_PKT, there.tokens_PKT) and here.texts == there.texts
            same = same and torch.equal(here.truncated_PK, there.truncated_PK)
            found[f"{name}, {'greedy' if draw is None else 'drawn'}"] = [same, max(float(x.abs().max()) for x in close)]
    return found


def _policy(architecture: dict[str, Any], name: str, device: torch.device) -> Policy:
    policy = policy_with(architecture)
    if name != "tied":
        make_endings_likely(policy, 1.5)
    policy.model.to(device)
    return policy


def waited(device: torch.device) -> dict[str, Any]:
    """What the host waits for: for 32 more tokens of rows that do not end, and in updates of one and of many passes."""
    policy = tiny_policy()
    make_endings_likely(policy, -1e9)
    policy.model.to(device)
    batches: list[Rollouts] = []
    totals = []
    for tokens in (8, 32, 64):  # the first call chooses the engine
        with waits() as found:
            batches.append(sample(policy, PROMPTS, 2, SamplingConfig(max_tokens=tokens), DRAW))
        totals.append(sum(found.values()))
    passes = []
    for budget in (16_384, 16_384, 32):  # the first update tests whether the model can be packed
        config = StageConfig(stage="x", steps=10, lr=1e-3, warmup=0, token_budget=budget)
        learner = Learner(policy, config, 1.0)
        with waits() as found:
            learner.update(batches[0], 1, lambda update, groups: torch.tensor([[1.0, -1.0]] * 6))
        passes.append(dict(found))
    tokens = totals[2] - totals[1]
    return {"32 tokens": tokens, "one pass": passes[1], "many passes": passes[2], "restored": _restored(device)}


def _restored(device: torch.device) -> dict[str, int]:
    """What the host waits for in a step of an optimizer whose state was restored."""
    layer, found = torch.nn.Linear(3, 3).to(device), dict[str, int]()
    for fused in (False, True):
        before = torch.optim.AdamW(layer.parameters(), fused=fused)
        layer(torch.ones(2, 3, device=device)).sum().backward()
        before.step()
        state = {name: {key: each.cpu() for key, each in kept.items()}
                 for name, kept in optimizer_state(before, layer).items()}  # fmt: skip
        after = torch.optim.AdamW(layer.parameters(), fused=fused)
        restore_optimizer(after, layer, state)
        with waits() as waited:
            after.step()
        found["fused" if fused else "not fused"] = sum(waited.values())
    return found


def refused(device: torch.device) -> dict[str, str]:
    """What CUDA refuses, and what the device says; empty where it does not refuse it."""
    there, here, index = torch.arange(3.0, device=device), torch.ones(3), torch.tensor([0], device=device)
    tried: dict[str, Callable[[], object]] = {
        "an operand of the CPU": lambda: there + here,
        "a change of a tensor of the CPU": lambda: here.add_(there),
        "an array": lambda: there * torch.from_numpy(here.numpy()),
        "indices of the device for the CPU": lambda: here[index],
        "values of the CPU": lambda: there.index_put((index,), here[:1]),
        "parts of both": lambda: torch.cat([there, here]),
        "weights of the CPU": lambda: torch.nn.functional.linear(there, torch.ones(2, 3)),
        "NumPy": lambda: there.numpy(),
        "the CPU's generator": lambda: torch.empty(3, device=device).normal_(generator=torch.Generator()),
    }
    assert (there * 2.0 + torch.tensor(1.0)).tolist() == [1, 3, 5] and float(there[torch.tensor([2])]) == 2
    found = dict.fromkeys(tried, "")
    for what, attempt in tried.items():
        try:
            attempt()
        except (RuntimeError, TypeError) as error:
            found[what] = str(error)
    return found


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    os.chdir(folder)
    device, cpu = pretend_device(), torch.device("cpu")
    result: dict[str, Any] = {"refused": refused(device), "sampled": sampled(device), "waits": waited(device)}
    for chain in CHAINS:
        there = trained(folder, chain, device)
        result[chain] = {"stages": differences(trained(folder, chain, cpu), there)}
        on(device)
        result[chain]["resumed"] = resumed(there)
    print(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
