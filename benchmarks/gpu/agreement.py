"""It is right: models of toy size compute on the device what they compute on the CPU, in every way that gradus has.

Sampler against training forward, packed against padded gradients, rows of zero weight, temperature, adapters and
gradient checkpointing, each against the CPU in float32, and with bfloat16 products within what these round away. Then
every stage and published variant takes real steps on both, from the same configuration.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.gpu.findings import Findings, Setup
from benchmarks.workload import Device
from torch import Tensor

from gradus.pipeline.common.observer import Observer
from gradus.pipeline.config import PolicyConfig, SamplingConfig, StageConfig
from gradus.pipeline.config.pipeline import pipeline_model
from gradus.pipeline.config.policy import LoraConfig
from gradus.pipeline.execution.prepare import prepare
from gradus.pipeline.execution.stage import run_stage
from gradus.pipeline.policy.creation import create_policy
from gradus.pipeline.policy.forward.logprobs import batch_logprobs
from gradus.pipeline.policy.forward.packable import can_pack
from gradus.pipeline.policy.lora import add_adapters
from gradus.pipeline.policy.policy import Policy, parameters
from gradus.pipeline.rollouts.builtin import DrawKey, sample
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.tracking.journal import metric_history
from gradus.pipeline.training.learner.learner import Learner
from gradus.pipeline.types import Prompt, Rollouts
from gradus.stages import discover

COMMON = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}
MODELS: dict[str, dict[str, Any]] = {
    "Llama": {**COMMON, "model_type": "llama", "num_key_value_heads": 2, "tie_word_embeddings": False},
    "Qwen 3": {**COMMON, "model_type": "qwen3", "num_key_value_heads": 2, "tie_word_embeddings": True},
    "Gemma 3": {
        **COMMON, "model_type": "gemma3_text", "num_key_value_heads": 1, "tie_word_embeddings": True,
        "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"],
    },
}  # fmt: skip
WORDS = 262_144
"""Gemma 3's vocabulary, most of which no text uses here."""
LOGPROB, GRADIENT = 1e-4, 1e-3
"""Allowed differences in float32: nats, and relative to the largest gradient. TF32 would miss both."""
ROUGH_LOGPROB, ROUGH_GRADIENT = 0.1, 0.1
"""The same with bfloat16 products, which have 8 significant bits."""
TEMPERATURE = 0.7
STAGES: dict[str, dict[str, Any]] = {
    "sft": {"stage": "sft"},
    "dapo": {"stage": "dapo"},
    "vapo": {"stage": "vapo"},
    "vapo-token": {"stage": "vapo", "critic": "token"},
    "gfpo": {"stage": "gfpo", "ranking": ["reward", "shorter"]},
    "srpo": {"stage": "srpo"},
    "srpo-sampled": {"stage": "srpo", "baseline": "mean"},
    "dapo-paper": {"stage": "dapo", "variant": "paper"},
    "vapo-paper": {"stage": "vapo", "variant": "paper", "critic_warmup": 0},
    "gfpo-paper": {"stage": "gfpo", "variant": "paper"},
    "srpo-paper": {"stage": "srpo", "variant": "paper"},
    "dapo-async": {"stage": "dapo", "async": 1, "updates_per_batch": 2, "clip": [0.2, 0.28]},
}
"""Their names here -> their options."""
COMPARED = ("update/loss", "update/gradient_norm", "completion/length", "reward/mean")


def run(setup: Setup, found: Findings) -> None:
    """The three models, then the stages."""
    torch.backends.cuda.matmul.allow_tf32 = False
    for name, architecture in MODELS.items():
        if name == "Gemma 3" and not setup.tiny:
            architecture = {**architecture, "vocab_size": WORDS}
        _model(name, architecture, setup, found)
    _stages(setup, found)


def texts() -> list[Prompt]:
    """Sums, of different lengths."""
    asked = ["1 + 2 =", "Calculate 12 + 34 - 5 =", "7 * 8 =", "What is left of 100 when 1 and 2 and 3 are taken away?"]
    return [Prompt(id=str(n), question=text, answer="0") for n, text in enumerate(asked)]


def made(architecture: dict[str, Any], device: Device) -> Policy:
    """A new policy; its weights are drawn on the CPU, and so the same on every device."""
    words = architecture.get("vocab_size")
    options = {key: value for key, value in architecture.items() if key != "vocab_size"}
    policy = create_policy(PolicyConfig(architecture=options, device=device), [p.question for p in texts()], seed=0)
    if words:
        torch.manual_seed(0)
        model: Any = policy.model
        model.to("cpu").resize_token_embeddings(words)
        with torch.no_grad():
            model.get_input_embeddings().weight.normal_(0, 0.02)
        model.tie_weights()
        model.to(device)
    return policy


def _model(name: str, architecture: dict[str, Any], setup: Setup, found: Findings) -> None:
    """Everything that is compared for one model."""
    device = setup.device
    options = SamplingConfig(max_tokens=12, temperature=TEMPERATURE)
    ours, theirs = made(architecture, device), made(architecture, "cpu")
    rollouts, reference = (sample(policy, texts(), 4, options, DrawKey(0, "check", 1)) for policy in (ours, theirs))
    found.add(f"{name}: sampling engine", type(ours.decoder).__name__, ok=type(ours.decoder) is type(theirs.decoder))
    same = rollouts.tokens_PKT.shape == reference.tokens_PKT.shape
    found.add(f"{name}: packed passes", can_pack(ours), ok=can_pack(ours) == can_pack(theirs))
    share = float((rollouts.tokens_PKT == reference.tokens_PKT).float().mean()) if same else 0.0
    found.add(f"{name}: share of tokens sampled as on the CPU", share)  # a draw may fall between two roundings
    trained = batch_logprobs(ours, rollouts, TEMPERATURE, 10_000)
    on_cpu = batch_logprobs(theirs, rollouts, TEMPERATURE, 10_000)
    mask = rollouts.mask_PKT
    found.below(f"{name}: sampler against training forward", _most(trained - rollouts.rollout_logprobs_PKT, mask),
                LOGPROB, "nats")  # fmt: skip
    found.below(f"{name}: training forward against the CPU", _most(trained - on_cpu, mask), LOGPROB, "nats")
    rollouts = replace(rollouts, rollout_logprobs_PKT=on_cpu)
    _gradients(name, lambda where: made(architecture, where), rollouts, setup, found)


def _most(values: Tensor, mask: Tensor) -> float:
    return float(values[mask].abs().max())


def _gradients(
    name: str, policy_on: Callable[[Device], Policy], rollouts: Rollouts, setup: Setup, found: Findings
) -> None:
    """One update's gradients in each way of computing them, against the CPU's packed ones in float32."""
    device = setup.device

    def adapted(where: Device) -> Policy:
        policy = policy_on(where)
        policy.adapters = add_adapters(policy.model, LoraConfig(rank=4, alpha=8), seed=0)
        with torch.no_grad():
            for place, value in enumerate(parameters(policy).values()):
                drawn = torch.randn(value.shape, generator=torch.Generator().manual_seed(place))
                value.copy_(0.05 * drawn)
        return policy

    def padded(where: Device) -> Policy:
        policy = policy_on(where)
        policy.packs = False
        return policy

    expected = _gradient(policy_on("cpu"), rollouts)
    expected_adapted = _gradient(adapted("cpu"), rollouts)
    ways: list[tuple[str, Policy, dict[str, Any], dict[str, Tensor], float]] = [
        ("packed", policy_on(device), {}, expected, GRADIENT),
        ("padded", padded(device), {}, expected, GRADIENT),
        ("gradient checkpointing", policy_on(device), {"gradient_checkpointing": True}, expected, GRADIENT),
        ("small packs", policy_on(device), {"token_budget": 40}, expected, GRADIENT),
        ("adapters", adapted(device), {}, expected_adapted, GRADIENT),
        ("bfloat16 products", policy_on(device), {"autocast": True}, expected, ROUGH_GRADIENT),
        ("bfloat16 products, padded", padded(device), {"autocast": True}, expected, ROUGH_GRADIENT),
    ]
    for way, policy, options, right, limit in ways:
        got = _gradient(policy, rollouts, **options)
        largest = max(float(value.abs().max()) for value in right.values())
        apart = max(float((got[key] - value).abs().max()) for key, value in right.items()) / largest
        found.below(f"{name}: gradients, {way}", apart, limit, "of the largest")


def _gradient(policy: Policy, rollouts: Rollouts, autocast: bool = False, **options: Any) -> dict[str, Tensor]:
    """The gradient of one update, by Adam's first moment, on the CPU; a third of the rows has weight zero."""
    config = StageConfig(stage="x", steps=1, warmup=0, lr=1e-9, grad_clip=1e9, clip=(0.2, 0.28), **options)
    learner = Learner(policy, config, TEMPERATURE, autocast)
    weights_PK = torch.arange(rollouts.truncated_PK.numel()).view_as(rollouts.truncated_PK) % 3 - 1.0
    metrics, _ = learner.update(rollouts, 1, lambda update, groups: weights_PK[groups])
    active = int((weights_PK != 0).sum())
    assert metrics["update/rows"] == active, f"{metrics['update/rows']} rows were trained on, not {active}"
    state = learner.optimizer.state
    return {name: state[value]["exp_avg"].float().cpu() * 10 for name, value in parameters(policy).items()}


def _stages(setup: Setup, found: Findings) -> None:
    """Two steps of every stage on the CPU and on the device; the first ones must agree.

    They follow each other, with a learning rate that hardly moves the weights, so that differences cannot add up.
    """
    on_cpu = _Stages("cpu", setup.scratch / "on-cpu")
    # On a CPU it is the same computation, which need not be repeated to see that it works.
    on_device = on_cpu if setup.device == "cpu" else _Stages(setup.device, setup.scratch / "on-device")
    for index, stage in enumerate(on_cpu.run.config.stages):
        expected, got = on_cpu.curves(index), on_device.curves(index)
        both = [(name, expected[name][1], got[name][1]) for name in COMPARED if name in expected]
        apart = {name: abs(one - two) / max(1e-3, abs(one)) for name, one, two in both}
        if apart.get("completion/length", 0.0):
            found.add(f"{stage.label}: another completion was drawn, so figures differ", True)
        else:
            worst = max(apart, key=lambda name: apart[name])
            found.below(f"{stage.label}: step 1 against the CPU ({worst})", apart[worst], 2e-3, "relative")


class _Stages:
    """A run with all stages on one device."""

    def __init__(self, device: str, folder: Path):
        folder.mkdir(parents=True)
        draw = random.Random(0)
        pairs = sorted({(draw.randint(0, 40), draw.randint(0, 40)) for _ in range(60)})
        rows = [{"question": f"{a} + {b} =", "answer": str(a + b), "solution": f"{a}+{b}={a + b}; answer: {a + b}"}
                for a, b in pairs]  # fmt: skip
        (folder / "task.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        small = {"steps": 2, "prompts_per_step": 3, "warmup": 0, "kl_every": 1, "lr": 1e-9}
        raw = {
            "name": "check",
            "policy": {"architecture": MODELS["Llama"] | {"num_hidden_layers": 1}, "device": device, "autocast": "off"},
            "task": {"source": "file", "path": "task.jsonl", "heldout": 8, "demonstrations": "column",
                     "columns": {"demonstration": "solution"}},
            "rewards": [{"reward": "length", "params": {"max": 2, "falloff": 40}}],
            "sampling": {"max_tokens": 10},
            "stages": [{**small, "name": name, **options} for name, options in STAGES.items()],
        }  # fmt: skip
        self.stages = discover()
        configs = [stage.config for stage in self.stages.values()]
        config = pipeline_model(configs).model_validate(raw)
        self.run = RunFolder.create(folder, config, "run", folder / "check.yaml", configs)
        self.parent = prepare(self.run, Observer())["checkpoint"]

    def curves(self, index: int) -> dict[str, dict[int, float]]:
        """Train the next stage; its curves."""
        stage = self.stages[self.run.config.stages[index].stage]
        self.parent = run_stage(self.run, index, self.parent, stage, Observer())["checkpoint"]
        return metric_history(self.run.stage_dir(index) / "journal.jsonl")
