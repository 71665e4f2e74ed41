"""How fast: steps of DAPO with the shapes of Qwen 3 0.6 B, adapters on 1.7 B, the longest completion, TRL in turns.

A step is sampled, scored with given rewards and learned from, as `benchmarks/workload.py` describes; lengths vary, with
a mean of about half the limit. Two numbers say how near the device's limits are: "of the bandwidth" is the bytes that
decoding must read (the weights and the cache, once a token of the longest completion) at the measured speed of a copy,
and "of the products" the operations of learning (`benchmarks/flops.py`) at the measured speed of bfloat16 products,
which is the model-FLOPs utilisation against what the device reached and not against its data sheet.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import torch
from benchmarks.flops import Size, learning
from benchmarks.gpu.findings import Findings, Setup, of_part
from benchmarks.gpu.shapes import case as case_of
from benchmarks.workload import Case, Gradus, make_policy, peak
from torch import Tensor

from gradus.pipeline.config.policy import LoraConfig
from gradus.pipeline.policy.forward.packable import can_pack
from gradus.pipeline.policy.lora import add_adapters
from gradus.pipeline.types import Prompt, Rollouts

Measured = dict[str, float]
STEPS = 3


def run(setup: Setup, found: Findings) -> None:
    """The most useful figures first."""
    device = setup.device
    small, narrow = case_of(setup.tiny), torch.bfloat16
    for name, dtype, autocast in (("float32 weights, bfloat16 products", torch.float32, True),
                                  ("bfloat16 weights", narrow, False)):  # fmt: skip
        policy = make_policy(small.model, device=device, dtype=dtype)
        _steps(f"{small.name}, {name}", Gradus(small, policy, autocast=autocast), setup, found)
        _emptied(setup)
    large = case_of(setup.tiny, large=True)
    policy = make_policy(large.model, device=device, dtype=narrow)
    policy.adapters = add_adapters(policy.model, LoraConfig(rank=16, alpha=32), seed=0)
    _steps(f"{large.name}, bfloat16 weights, adapters", Gradus(large, policy), setup, found)
    _emptied(setup)
    _longest(small, setup, found)
    _emptied(setup)
    _against_trl(small, setup, found)


def _emptied(setup: Setup) -> None:
    """Give back what the last model held."""
    import gc

    gc.collect()
    if setup.device == "cuda":
        torch.cuda.empty_cache()


def measured(system: Gradus, steps: int) -> Measured:
    """Seconds a step by part, tokens, and the peak in bytes; the first step, which chooses engines, is not counted."""
    system.step(0)
    system.clock.take()
    if system.policy.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for number in range(1, steps + 1):
        system.step(number)
    totals = {name: value / steps for name, value in system.clock.take().items()}
    return totals | {"peak": peak(system.policy.device)}


def _steps(name: str, system: Gradus, setup: Setup, found: Findings) -> None:
    """Steps of one system."""
    steps = 1 if setup.tiny else STEPS
    got = measured(system, steps)
    step, sampling, learned = (got[f"{part} wall"] for part in ("step", "sample", "learn"))
    found.add(f"{name}: sampling engine", type(system.policy.decoder).__name__)
    found.add(f"{name}: packed passes", can_pack(system.policy))
    found.add(f"{name}: a step", step, "s")
    found.add(f"{name}: sampling", sampling, "s")
    found.add(f"{name}: learning", learned, "s")
    found.add(f"{name}: the rest", step - sampling - learned, "s")
    found.add(f"{name}: tokens sampled", got["tokens"] / sampling, "tokens/s")
    found.add(f"{name}: tokens learned", got["tokens"] / learned, "tokens/s")
    found.add(f"{name}: tokens of whole steps", got["tokens"] / step, "tokens/s")
    found.add(f"{name}: peak memory", got["peak"] / 1e9, "GB")
    rates = {f["what"]: f["value"] for f in of_part(setup.out, "environment")}
    size, numbers = Size.of(system.policy), range(1, steps + 1)
    width = next(system.policy.model.parameters()).element_size()
    read = sum(_read(system.case, size, number, width) for number in numbers) / steps
    work = [learning(system.case, size, number) for number in numbers]
    operations = sum(each.linear + each.attention for each in work) / steps
    found.add(f"{name}: sampling, of the bandwidth", read / sampling / 1e9 / rates["copy bandwidth"])
    found.add(f"{name}: learning, of the products", operations / learned / 1e12 / rates["bfloat16 products"])


def _read(case: Case, size: Size, step: int, width: int) -> float:
    """Bytes that decoding must read: all weights once a token of the longest completion, and each cache as it grows."""
    lengths = np.minimum(case.lengths(step), case.new_tokens)
    total = 0.0
    for position in range(1, int(lengths.max())):
        rows, groups = int((lengths > position).sum()), int((lengths > position).any(axis=1).sum())
        total += size.layers + size.head + size.cache * (groups * case.prompt_tokens + rows * position)
    return total * width


def _against_trl(case: Case, setup: Setup, found: Findings) -> None:
    """TRL's `GRPOTrainer` in turns with gradus, on the same weights, prompts, lengths and rewards."""
    if importlib.util.find_spec("trl") is None:
        found.add("TRL", "not installed, so not compared")
        return
    from benchmarks.vs_trl import measure

    try:
        got = measure(case, runs=1, trl_rows=8, device=setup.device)
    except SystemExit as error:
        found.add("TRL", f"{error}; see the log", ok=False)
        return
    theirs, ours = (got["turns"][name][-1] for name in ("TRL", "gradus"))
    for part in ("step", "sample", "learn"):
        ratio = theirs[f"{part} wall"] / ours[f"{part} wall"]
        found.add(f"TRL's seconds / ours, {part}", ratio, f"x ({theirs[f'{part} wall'] / got['steps']:.2f} s)")
    found.add("TRL's peak memory / ours", theirs["peak"] / ours["peak"], "x")
    # Both learn with bfloat16 products on a GPU, and these are summed in another order.
    found.below("gradient of one update against TRL's", got["update"]["gradient"],
                0.05 if setup.device == "cuda" else 1e-3, "of the largest")  # fmt: skip


def _longest(case: Case, setup: Setup, found: Findings) -> None:
    """Two completions of one prompt are learned from, twice as long each time, until memory or time ends."""
    device = setup.device
    policy = make_policy(case.model, device=device)
    system = Gradus(case, policy, autocast=True, gradient_checkpointing=True)
    length, fitted = 64 if setup.tiny else 4096, 0
    while length <= (128 if setup.tiny else 262_144) and found.seconds < 0.8 * setup.seconds:
        try:
            system.clock.take()
            with system.clock("learn"):
                system.learner.update(_pair(case, length), 1, lambda update, groups: torch.tensor([[1.0, -1.0]]))
        except torch.OutOfMemoryError:
            found.add("the next longer completion", f"{length:,} tokens do not fit")
            break
        fitted, seconds = length, system.clock.take()["learn wall"]
        found.add(f"learning from 2 completions of {length:,} tokens", seconds, "s")
        length *= 2
    found.add("the longest completion that fitted (weights in float32, gradient checkpointing)", fitted, "tokens")


def _pair(case: Case, length: int) -> Rollouts:
    """Two random completions of this length."""
    drawn = torch.Generator().manual_seed(0)
    tokens_PKT: Tensor = torch.randint(2, case.model["vocab_size"], (1, 2, length), generator=drawn)
    make: Callable[..., Tensor] = torch.zeros
    return Rollouts(
        prompts=[Prompt(id="long", question="", answer="")],
        prompt_tokens=[tokens_PKT[0, 0, :8].tolist()],
        tokens_PKT=tokens_PKT,
        mask_PKT=torch.ones(1, 2, length, dtype=torch.bool),
        rollout_logprobs_PKT=make(1, 2, length),
        truncated_PK=make(1, 2, dtype=torch.bool),
        texts=[["", ""]],
    )
