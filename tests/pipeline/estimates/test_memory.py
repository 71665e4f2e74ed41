"""Sizes on paper, held to hand arithmetic, to real models, to what autograd keeps, and to the code's own limits."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.workload import make_policy
from small_pipeline import TASK, pipeline
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from gradus.flows.cli import app
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PolicyConfig, SamplingConfig
from gradus.pipeline.config.policy import LoraConfig
from gradus.pipeline.estimates import load as sizing
from gradus.pipeline.estimates.drawing import copies
from gradus.pipeline.estimates.hardware import KNOWN, Hardware, parse_hardware
from gradus.pipeline.estimates.load import Load
from gradus.pipeline.estimates.memory import activation_bytes, memory
from gradus.pipeline.estimates.model_size import ModelSize, from_options, model_size, stored_parameters
from gradus.pipeline.estimates.step_time import pace
from gradus.pipeline.policy.forward import lm_head
from gradus.pipeline.policy.forward.packing import Pack, computing, hidden_states
from gradus.pipeline.policy.lora import add_adapters
from gradus.pipeline.rollouts.builtin import draw, lean_engine
from gradus.pipeline.rollouts.builtin.decoder import Decoder
from gradus.pipeline.rollouts.builtin.limits import Limits
from gradus.pipeline.training import evaluation
from gradus.pipeline.training.learner.terms import Terms
from gradus.pipeline.types import Prompt, Rollouts
from gradus.stages import discover

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 80,
}
KINDS = ("llama", "qwen3", "gemma3_text", "qwen2", "mistral", "gemma2")
LLAMA_2_7B = from_options(
    {"model_type": "llama", "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008,
     "num_hidden_layers": 32, "num_attention_heads": 32, "tie_word_embeddings": False}
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_real_model(kind: str, tied: bool) -> None:
    options = {name: value for name, value in SHAPE.items() if name != "head_dim" or kind != "qwen2"}
    real = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, tie_word_embeddings=tied, **options))
    size = from_options({"model_type": kind, "tie_word_embeddings": tied, **options})
    assert size.parameters == sum(parameter.numel() for parameter in real.parameters())
    linear = [m for name, m in real.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]
    assert size.linear == sum(module.weight.numel() for module in linear)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text"])
def test_what_is_left_out_is_what_transformers_takes(kind: str) -> None:
    config = AutoConfig.for_model(kind)
    size = from_options({"model_type": kind})
    assert (size.width, size.layers, size.vocabulary) == (
        config.hidden_size, config.num_hidden_layers, config.vocab_size
    )  # fmt: skip
    assert (size.heads, size.kv_heads, size.inner) == (
        config.num_attention_heads, config.num_key_value_heads, config.intermediate_size
    )  # fmt: skip
    assert size.tied == config.tie_word_embeddings


def test_parameters_by_hand() -> None:
    # a layer: 4 products of 4,096^2 and 3 of 4,096 x 11,008 are 202,375,168, and two norms 8,192;
    # 32 layers 6,476,267,520; words twice 262,144,000; the last norm 4,096
    assert LLAMA_2_7B.linear == 32 * 202_375_168
    assert LLAMA_2_7B.parameters == 6_738_415_616
    assert LLAMA_2_7B.cache == 2 * 32 * 4096  # keys and values of a token


def test_the_adapters_are_those_that_peft_makes() -> None:
    policy = make_policy({"model_type": "llama", **SHAPE})
    policy.adapters = add_adapters(policy.model, LoraConfig(rank=4), 0)
    trained = sum(p.numel() for p in policy.model.parameters() if p.requires_grad)
    assert from_options({"model_type": "llama", **SHAPE}).adapters(4) == trained


def test_the_decoders_products_are_those_that_it_fuses() -> None:
    policy = make_policy({"model_type": "qwen3", **SHAPE})
    decoder = Decoder(policy.model).fused()
    fused = sum(block.qkv.weight.numel() + block.gate_up.weight.numel() for block in decoder.blocks)
    assert from_options({"model_type": "qwen3", **SHAPE}).fused == fused


def kept(model: dict[str, Any], load: Load) -> int:
    """Bytes that autograd keeps of one pack, the weights left out."""
    policy, found = make_policy(model), dict[int, torch.UntypedStorage]()
    own = {parameter.untyped_storage().data_ptr() for parameter in policy.model.parameters()}
    prompts = [[2 + (p * 7 + at) % 60 for at in range(load.prompt_tokens)] for p in range(load.prompts)]
    completions = [[2 + (row * 5 + at) % 60 for at in range(load.new_tokens)] for row in range(load.rows)]
    slots = [row // load.group for row in range(load.rows)]
    pack = Pack.of(prompts, slots, completions, policy.device)

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found.setdefault(storage.data_ptr(), storage)  # held, so that no other one gets its place
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        computing(policy, pack),
        torch.autocast("cpu", torch.bfloat16, enabled=load.autocast),
    ):
        hidden_states(policy, pack)
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("prompt", "new"), [(16, 48), (96, 24)])
def test_activations_are_those_that_autograd_keeps(kind: str, autocast: bool, prompt: int, new: int) -> None:
    wider = {"hidden_size": 96, "head_dim": 24, "intermediate_size": 256}
    load = Load("x", 1, prompts=3, group=8, prompt_tokens=prompt, new_tokens=new, autocast=autocast)
    model = {"model_type": kind, **SHAPE, **wider}
    assert activation_bytes(from_options(model), load) == pytest.approx(kept(model, load), rel=0.045)


def test_memory_by_hand() -> None:
    size = ModelSize("llama", 2, 8, 2, 1, 4, 16, 32, False).counted()
    assert size.parameters == 1704
    load = Load("x", 1, prompts=2, group=4, prompt_tokens=10, new_tokens=20, reference=True, start=True, evaluated=6)
    found = memory(size, load)
    assert (found.weights, found.moments, found.copies) == (6816, 13_632, 13_632)
    # q, k, v: 8 x (8 + 4 + 4); gate and up: 8 x 32; both layers; 4 bytes
    assert size.fused == 768 and found.decoder == 3072
    # 8 rows; begun with 10 + 16 columns, grown once to 42 while the 26 are still there; 16 numbers a token
    assert found.cache == 4 * 16 * 8 * (26 + 42)
    assert found.drawing == 4 * 4 * 8 * 32
    # 3 prompts in each of 2 parts at once
    assert found.evaluation == 2 * (4 * 16 * 3 * (26 + 42) + 4 * 4 * 3 * 32)
    # 8 x 20 predicted tokens are one piece
    assert found.logits == 2 * 4 * 160 * 32
    assert found.learning == found.held + found.gradients + found.activations + found.logits
    assert found.peak == max(found.sampling, found.learning, found.evaluating)


def test_a_long_prompt_is_kept_once_a_group_and_the_budget_bounds_what_grows() -> None:
    size = ModelSize("llama", 2, 8, 2, 1, 4, 16, 32, False).counted()
    long = Load("x", 1, prompts=2, group=4, prompt_tokens=100, new_tokens=10)
    assert memory(size, long).cache == 4 * 16 * (2 * 100 + 8 * 16)  # no growth: nine columns of the first 16
    # a group holds 100 + 4 x 10 tokens: of 10 groups 3 fit into 500
    assert Load("x", 1, 10, 4, 100, 10, cache_tokens=500).growing(10, 4) == 12
    # 10 x (100 + 4 x 10) tokens in packs of 500
    assert Load("x", 1, 10, 4, 100, 10, pack_tokens=500).packs == 3


def test_options_change_what_they_should() -> None:
    size = from_options({"model_type": "llama", **SHAPE})

    def peak(**options: Any) -> sizing.Memory:
        return memory(size, Load("x", 1, 8, 8, 32, 64, **options))

    plain = peak()
    assert peak(checkpointing=True).activations < 0.6 * plain.activations
    assert peak(pack_tokens=1024).activations < 0.3 * plain.activations
    assert peak(pack_tokens=1024).gradients > plain.gradients  # those of the packs before
    assert peak(lora_rank=2).moments < 0.3 * plain.moments
    assert peak(token_critic=True).copies == 3 * plain.weights
    assert peak(weight_bytes=2).weights == plain.weights / 2
    assert peak(reference_sampled=True).decoder == 2 * plain.decoder
    assert peak(ahead=True).learning > plain.learning + plain.cache
    engine = peak(external=True, evaluated=6)
    assert engine.cache == engine.drawing == engine.evaluation == engine.decoder == 0 < engine.learning < plain.learning
    eight = memory(size, Load("x", 1, 1, 8, 32, 64), devices=8)
    assert eight.moments == plain.moments / 8


class Allocated(TorchDispatchMode):
    """The most bytes that tensors made within it take at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in self.held:
                self.held[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.held.pop, storage._cdata)
        self.most = max(self.most, sum(self.held.values()))
        return out


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("limits", [{}, {"ban": [3]}, {"min_tokens": 2}, {"ban": [3], "min_tokens": 2}])
def test_the_copies_of_logits_are_those_that_drawing_allocates(
    limits: dict[str, Any], cuda: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cuda:
        monkeypatch.setattr(draw, "summable", draw.as_integers)
    policy, rows = make_policy({"model_type": "llama", **SHAPE}), 200
    for options in ({}, {"top_k": 5}, {"top_p": 0.9}, {"top_k": 5, "top_p": 0.9}):
        for temperature, greedy in ((1.0, False), (0.7, False), (0.7, True)):
            sampling = SamplingConfig(max_tokens=4, temperature=temperature, **options, **limits)
            bounds, counts, uniforms = Limits(policy, sampling), torch.zeros(rows).long(), torch.rand(rows)
            with Allocated() as allocated:
                logits = torch.randn(rows, 2000)
                forbidden = bounds.forbidden(counts, 2000)
                draw.draw_tokens(logits, None if greedy else uniforms, sampling, forbidden)
                del forbidden
            measured = allocated.most / logits.nbytes
            assert measured == pytest.approx(copies(sampling, cuda, greedy), abs=0.02), (options, temperature, greedy)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_logits_of_a_piece_are_those_that_an_entropy_term_allocates(autocast: bool) -> None:
    model = {"model_type": "llama", **SHAPE, "vocab_size": 4000}
    policy, rows, size = make_policy(model), 1000, from_options(model)
    states, targets = torch.randn(rows, size.width, requires_grad=True), torch.randint(0, 4000, (rows,))
    load = Load("x", 1, prompts=10, group=10, prompt_tokens=8, new_tokens=10, autocast=autocast, entropy=True)
    with Allocated() as allocated, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        lm_head.objective(policy, states, targets, 0.7, lambda found, _: found.sum(), torch.full((rows,), 0.01))
    of_the_head = (
        2 * 4 + 2 * autocast
    ) * size.words  # gradients of all pieces and of this one, the weights in bfloat16
    found = memory(size, load)
    assert found.logits <= allocated.most <= found.logits + of_the_head
    assert found.logits == 4 * 4_000_000 * (4.5 if autocast else 4)
    assert found.learning == found.held + found.gradients + found.activations + found.logits + found.terms


def test_what_the_terms_hold_for_each_token_is_counted() -> None:
    stages = [{"stage": "dapo"}, {"stage": "dapo", "name": "held", "kl": 0.1, "entropy": {"weight": 0.01}}]
    config, stage = pipeline(stages), discover()["dapo"]
    plain, held = (Load.of(config, each, stage.needs(each), 10, cuda=False) for each in config.stages)
    shape = (held.prompts, held.group, held.new_tokens)
    batch = Rollouts(
        prompts=[Prompt("0", "", "")] * held.prompts,
        prompt_tokens=[[1]] * held.prompts,
        tokens_PKT=torch.ones(shape, dtype=torch.int64),
        mask_PKT=torch.ones(shape, dtype=torch.bool),
        rollout_logprobs_PKT=torch.zeros(shape),
        truncated_PK=torch.zeros(shape[:2], dtype=torch.bool),
        texts=[[""] * held.group] * held.prompts,
    )
    bytes_held = []
    for each in config.stages:
        with Allocated() as allocated:
            batch_now = replace(batch, reference_logprobs_PKT=torch.zeros(shape) if each.kl else None)
            terms = Terms.of(batch_now, torch.ones(shape[:2]), each, 0.0, each.entropy.weight if each.entropy else 0.0)
            bytes_held.append(sum(allocated.held.values()))
            assert (terms.kl is None) == (terms.entropy is None) == (not each.kl)
    size = from_options({"model_type": "llama", **SHAPE})
    assert memory(size, plain).terms == 0 and memory(size, held).terms == bytes_held[1] - bytes_held[0]


def test_the_load_of_a_stage_counts_its_own_limits() -> None:
    stages = [{"stage": "dapo"}, {"stage": "gfpo", "sampling": {"max_tokens": 10, "ban": [3]}}]
    config, found = pipeline(stages), discover()
    plain, bound = (Load.of(config, stage, found[stage.stage].needs(stage), 10, cuda=False) for stage in config.stages)
    assert (plain.drawing, bound.drawing, bound.greedy) == (4.0, 4.25, 4.0)
    size = from_options({"model_type": "llama", **SHAPE})
    assert memory(size, replace(plain, drawing=bound.drawing)).drawing == 4.25 / 4 * memory(size, plain).drawing
    low, high = (memory(size, replace(plain, greedy=greedy)).evaluation for greedy in (4.0, 4.25))
    assert low < high


def test_other_policies_are_counted_at_their_own_size(folder: Path) -> None:
    """A stage of the pipeline and its start are as large as the policy; a folder says its own size."""
    task = {"a": TASK, "b": TASK}
    stages = [
        {"stage": "dapo"},
        {"stage": "dapo", "name": "held", "kl": 0.1},
        {"stage": "opd", "task": {"a": 1, "b": 1}, "teacher": {"a": "dapo", "b": str(folder)}, "reference": "start"},
    ]
    config, found = pipeline(stages, task="a", tasks=task), discover()
    plain, held, opd = (Load.of(config, each, found[each.stage].needs(each), 10, cuda=False) for each in config.stages)
    assert (plain.reference, plain.others, held.reference, held.others) == (False, 0, True, 0)
    assert (opd.reference, opd.others) == (False, 2), "dapo and the start"
    size = model_size(config.policy)
    other = model_size(config.policy.model_copy(update={"path": str(folder), "architecture": None})).parameters
    assert opd.other_parameters == other != size.parameters
    without = replace(opd, others=0, other_parameters=0)
    assert memory(size, opd).copies - memory(size, without).copies == 4 * (2 * size.parameters + other)


def test_the_limits_are_those_of_the_code() -> None:
    assert (sizing.SHARE_FROM, sizing.CACHE_BLOCK) == (lean_engine.SHARE_FROM, lean_engine.BLOCK)
    assert (sizing.CELLS, sizing.CUDA_CELLS) == (lm_head.CELLS, lm_head.CUDA_CELLS)
    assert (sizing.FEWEST, sizing.PARTS) == (lm_head.FEWEST, evaluation.PARTS)


def test_time_by_hand() -> None:
    size = LLAMA_2_7B
    device = Hardware("x", 1e12, 1e15, 1e14, 1e12, 1e11, efficiency=0.5, operation=0.0)
    load = Load("x", 1, 4, 8, 16, 101, weight_bytes=2)
    found = {part.what: part.seconds for part in pace(size, load, device).parts}
    # 100 steps read 6.6074 G weights of 2 bytes at 0.7 TB/s; 32 rows compute 2 x 6.6 G x 32 at 5e14, which is less
    assert found["reading the weights"] == pytest.approx(100 * 2 * (size.linear + size.words) / 0.7e12)
    pairs = 4 * 16**2 / 2 + 32 * (101 * 16 + 101**2 / 2)
    forward = 2 * size.linear * (4 * 16 + 32 * 100) + 4 * 32 * 4096 * pairs
    assert found["products of learning"] == pytest.approx(3 * (forward + 2 * size.words * 32 * 101) / 5e14)
    assert found["the optimizer"] == pytest.approx(28 * size.parameters / 0.7e12)
    assert pace(size, load, device).largest.what == "reading the weights"
    twice = pace(size, Load("x", 1, 4, 8, 16, 101, weight_bytes=2, reference_sampled=True), device)
    assert twice.of("sampling") == pytest.approx(2 * pace(size, load, device).of("sampling"))
    # An engine starts no operations one by one, is given the weights, and what it drew is read once.
    device = Hardware("x", 1e12, 1e15, 1e14, 1e12, 1e11, efficiency=0.5, operation=1.0)
    drawn = {part.what: part.seconds for part in pace(size, replace(load, external=True), device).parts if part.phase}
    assert drawn["reading the weights"] == found["reading the weights"]
    assert drawn["pushing weights"] == pytest.approx(2 * size.parameters / device.link)
    assert drawn["reading completions"] == pytest.approx((forward + 2 * size.words * 32 * 101) / 5e14)
    assert not [part for part in pace(size, replace(load, external=True), device).parts
                if (part.phase, part.what) == ("sampling", "starting operations")]  # fmt: skip


def test_hardware_is_named() -> None:
    assert parse_hardware("8xH100") == parse_hardware("8 x h100")
    assert (parse_hardware("4xH100:94GB").memory, parse_hardware("4xH100:94GB").devices) == (94e9, 4)
    assert parse_hardware("cpu:24GiB").memory == 24 * 2**30
    for wrong in ("8xFoo", "", "cpu", "0xH100", "H100:0GB", "x", "H100:94"):
        with pytest.raises(UserError, match="known") as refused:
            parse_hardware(wrong)
        assert "RTX4090" in refused.value.expected
    assert all(each.memory > 2e10 and each.narrow >= each.wide for each in KNOWN.values() if each.cuda)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A small model on disk."""
    make_policy({"model_type": "llama", **SHAPE}).save(tmp_path / "model")
    yield tmp_path / "model"


def test_a_folder_tells_its_size_exactly(folder: Path) -> None:
    size = model_size(PolicyConfig(path=str(folder)))
    assert size.parameters == stored_parameters(folder) == from_options({"model_type": "llama", **SHAPE}).parameters
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, "num_local_experts": 8}))
    with pytest.raises(UserError, match="cannot be computed"):
        model_size(PolicyConfig(path=str(folder)))
    with pytest.raises(UserError, match="not on this machine"):
        model_size(PolicyConfig(path="nobody/has-this"))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # as the files of the weights have them
        ("Qwen/Qwen3-0.6B", 596_049_920),
        ("Qwen/Qwen3-4B", 4_022_468_096),
        ("Qwen/Qwen2.5-32B", 32_763_876_352),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 1_777_088_000),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", 7_615_616_512),
    ],
)
def test_the_models_of_packaged_configurations_are_known_without_a_network(name: str, parameters: int) -> None:
    assert model_size(PolicyConfig(path=name)).parameters == parameters


def test_the_plan_prints_it(tmp_path: Path) -> None:
    runs = ["--runs", str(tmp_path)]
    told = CliRunner().invoke(app.app, ["plan", "quickstart", "--hardware", "cpu:24GiB", *runs])
    assert told.exit_code == 0
    for words in ("cpu (25.8 GB)", "KV cache", "while evaluating", "largest part", "docs/scaling.md"):
        assert words in told.output
    wanted = ["plan", "examples/scaling/7b.yaml", "--hardware", "1xH100", "--json", *runs]
    found = json.loads(CliRunner().invoke(app.app, wanted).output)["sizes"]
    assert found["model"]["parameters"] == LLAMA_2_7B.parameters
    assert found["heaviest"] == "vapo" and found["ways_on"] and not found["stages"][-1]["fits"]
    engine = [*wanted[:-3], "--set", "rollouts.engine=vllm", *wanted[-3:]]
    told = json.loads(CliRunner().invoke(app.app, engine).output)["sizes"]["stages"][1]
    assert told["engine"] == 0.4 * 80e9 and told["peak"] == told["engine"] + told["learning"]
    wrong = CliRunner().invoke(app.app, ["plan", "quickstart", "--hardware", "8xFoo", *runs])
    assert wrong.exit_code == 2 and "RTX4090" in wrong.stderr
