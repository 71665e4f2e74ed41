"""Completions of an engine with weights of its own: of the right weights, in the right form, corrected for rounding.

The engine here is the built-in sampler on a second copy of the weights, moved a little where a test wants that. What
vLLM itself does is tested in test_vllm.py, where it is installed.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted_policies import adapted, stir
from pydantic import ValidationError
from small_pipeline import launch, pipeline
from tiny_policies import tiny_policy
from torch import Tensor

from gradus.pipeline.common.errors import StageFailed, UserError
from gradus.pipeline.config import PipelineConfig, SamplingConfig, StageConfig
from gradus.pipeline.config.compute import RolloutConfig
from gradus.pipeline.policy.policy import Policy, frozen_copy
from gradus.pipeline.rollouts import factory
from gradus.pipeline.rollouts.builtin import DrawKey, sample
from gradus.pipeline.rollouts.external import EngineSampler
from gradus.pipeline.rollouts.sampler import Completion, Request
from gradus.pipeline.rollouts.vllm import checks
from gradus.pipeline.rollouts.vllm.http import Client, ServerProblem
from gradus.pipeline.rollouts.vllm.worker import RolloutWorker
from gradus.pipeline.rollouts.weights import pushed_weights, weights_digest
from gradus.pipeline.tracking.journal import metric_history
from gradus.pipeline.training.learner.learner import Learner
from gradus.pipeline.training.learner.losses import importance_weights
from gradus.pipeline.types import Prompt, Rollouts

OPTIONS = SamplingConfig(max_tokens=8, temperature=0.7)
DRAW = DrawKey(0, "s", 1)


class CopyEngine:
    """Completes with a copy of the policy whose weights it was given."""

    def __init__(self, policy: Policy, moved: float = 0.0):
        self.copy, self.moved, self.held = frozen_copy(policy), moved, ""
        self.copy.encode_prompt = lambda prompt: json.loads(prompt.question)  # type: ignore[method-assign]  # it gets tokens
        self.pushes: list[str] = []
        self.on_generate: Callable[[], None] = lambda: None

    def digest(self) -> str:
        return self.held

    def load(self, digest: str, policy: Policy) -> None:
        self.held, weights = digest, pushed_weights(policy)
        self.pushes.append(digest)
        missing, unexpected = self.copy.model.load_state_dict(weights, strict=False)
        assert not unexpected and all("lm_head" in name for name in missing)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.copy.model.parameters():
                parameter += self.moved * torch.randn(parameter.shape, generator=generator)

    def generate(
        self,
        requests: list[Request],
        ends: tuple[int, ...],
        options: SamplingConfig,
        done: Callable[[int, list[Completion]], None],
    ) -> None:
        assert ends == self.copy.template.eos_ids
        for index, request in reversed([*enumerate(requests)]):
            prompt = Prompt(id="any", question=json.dumps(request.tokens), answer="")
            draw = None if request.seed is None else DrawKey(request.seed, "engine", 0)
            drawn = sample(self.copy, [prompt], request.group_size, options, draw)
            completions = []
            for k, length in enumerate(drawn.lengths_PK[0].tolist()):
                tokens, logprobs = (x[0, k, :length].tolist() for x in (drawn.tokens_PKT, drawn.rollout_logprobs_PKT))
                completions.append(Completion(tokens, logprobs, not bool(drawn.truncated_PK[0, k])))
            done(index, completions)
        self.on_generate()


def sampler_with(engine: CopyEngine, **options: Any) -> EngineSampler:
    return EngineSampler(engine, RolloutConfig(engine="vllm", **options), token_budget=200, autocast=False)


def engine_policy(sampler: EngineSampler) -> Policy:
    copy = sampler.engine.copy  # type: ignore[attr-defined]
    return Policy(copy.model, copy.tokenizer, copy.template)


def drawn(sampler: EngineSampler, policy: Policy, prompts: list[Prompt], **options: Any) -> Rollouts:
    with sampler.weights_of(policy):
        return sampler(policy, prompts, 3, OPTIONS, DRAW, **options)


def nudge(policy: Policy, place: int = 0) -> None:
    """The smallest change that there is, in one number."""
    with torch.no_grad():
        flat = next(iter(policy.model.parameters())).view(-1)
        flat[place] = torch.nextafter(flat[place], torch.tensor(9.0))


# -- what the policy reads


@pytest.mark.parametrize("architecture", [{}, {"model_type": "qwen3", "head_dim": 8}])
def test_a_batch_has_the_form_and_the_numbers_of_the_built_in_sampler(
    architecture: dict[str, Any], prompts: list[Prompt]
) -> None:
    policy = tiny_policy(**architecture)
    told: dict[int, list[str]] = {}
    sampler = sampler_with(CopyEngine(policy))
    found = drawn(sampler, policy, prompts, return_prompt_states=True, on_group=told.__setitem__)
    assert [told[p] for p in range(len(prompts))] == found.texts
    assert found.engine_logprobs_PKT is not None and found.entropy_PKT is not None
    torch.testing.assert_close(found.rollout_logprobs_PKT, found.engine_logprobs_PKT, rtol=0, atol=1e-5)
    # The same tokens by the built-in sampler, prompt by prompt with the engine's own seeds.
    for p, prompt in enumerate(prompts):
        key, alone = DrawKey(DRAW.number(prompt.id), "engine", 0), replace(prompt, id="any")
        same = sample(policy, [alone], 3, OPTIONS, key, return_prompt_states=True)
        width = same.tokens_PKT.shape[-1]
        assert same.entropy_PKT is not None and same.prompt_states_PD is not None
        assert found.prompt_states_PD is not None
        assert torch.equal(found.tokens_PKT[p, :, :width], same.tokens_PKT[0])
        assert torch.equal(found.mask_PKT[p, :, :width], same.mask_PKT[0]) and not found.mask_PKT[p, :, width:].any()
        assert torch.equal(found.truncated_PK[p], same.truncated_PK[0])
        assert found.prompt_tokens[p] == same.prompt_tokens[0]
        torch.testing.assert_close(found.entropy_PKT[p, :, :width], same.entropy_PKT[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.prompt_states_PD[p], same.prompt_states_PD[0], rtol=1e-4, atol=1e-5)
    assert found.entropy_PKT[~found.mask_PKT].eq(0).all() and found.rollout_logprobs_PKT[~found.mask_PKT].eq(0).all()


def test_texts_alone_need_no_pass_of_the_policy(policy: Policy, prompts: list[Prompt]) -> None:
    sampler = sampler_with(CopyEngine(policy, moved=0.5))  # its numbers would be refused
    found = drawn(sampler, policy, prompts, without_logprobs=True)
    assert found.entropy_PKT is None and found.engine_logprobs_PKT is None and "time/read" not in sampler.metrics
    with sampler.weights_of(policy):
        greedy = sampler(policy, prompts, 1, OPTIONS, None, without_logprobs=True)
    assert greedy.texts == sample(engine_policy(sampler), prompts, 1, OPTIONS, None).texts


# -- whose weights


@pytest.mark.parametrize("place", [0, 7])
def test_the_digest_tells_every_bit(place: int) -> None:
    policy, other = tiny_policy(), tiny_policy()
    assert weights_digest(policy) == weights_digest(other)
    nudge(other, place)
    assert weights_digest(policy) != weights_digest(other)


def test_the_digest_tells_places_adapters_and_types() -> None:
    policy, swapped, adapters = tiny_policy(), tiny_policy(), adapted()
    with torch.no_grad():
        weight = swapped.model.get_input_embeddings().weight
        weight[[2, 3]] = weight[[3, 2]].clone()
    before = weights_digest(adapters)
    stir(adapters)
    half = tiny_policy()
    half.model.to(torch.bfloat16)
    digests = [weights_digest(each) for each in (policy, swapped, adapters, half)]
    assert len({before, *digests}) == 5


def test_what_is_pushed_is_a_checkpoints_weights(policy: Policy) -> None:
    assert set(pushed_weights(policy)) == set(policy.model.state_dict())
    tied = tiny_policy(tie_word_embeddings=True)
    assert "lm_head.weight" not in pushed_weights(tied) and "model.embed_tokens.weight" in pushed_weights(tied)
    adapters = adapted()
    stir(adapters)
    merged = pushed_weights(adapters)
    assert set(merged) == set(policy.model.state_dict())
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(merged[name], policy.model.state_dict()[name])


def test_weights_are_pushed_when_they_changed_and_only_then(policy: Policy, prompts: list[Prompt]) -> None:
    engine = CopyEngine(policy)
    sampler = sampler_with(engine)
    drawn(sampler, policy, prompts)
    first = dict(sampler.metrics)
    again = drawn(sampler, policy, prompts)
    assert len(engine.pushes) == 1 and (first["sampler/pushes"], sampler.metrics["sampler/pushes"]) == (1.0, 0.0)
    reference = frozen_copy(policy)
    nudge(policy)
    drawn(sampler, policy, prompts)
    assert len(engine.pushes) == 2
    once_more = drawn(sampler, reference, prompts)  # a reference policy takes its turn with the one that trains
    assert engine.pushes[2] == engine.pushes[0] and torch.equal(once_more.tokens_PKT, again.tokens_PKT)


def test_weights_that_were_lost_meanwhile_end_the_stage(policy: Policy, prompts: list[Prompt]) -> None:
    engine = CopyEngine(policy)
    engine.on_generate = lambda: setattr(engine, "held", "")  # the server was started anew
    with pytest.raises(StageFailed, match="holds other weights"):
        drawn(sampler_with(engine), policy, prompts)


def test_an_engine_that_takes_no_weights_is_never_asked(policy: Policy, prompts: list[Prompt]) -> None:
    engine = CopyEngine(policy)
    engine.load = lambda digest, policy: None  # type: ignore[method-assign]
    with pytest.raises(StageFailed, match="its own"):
        drawn(sampler_with(engine), policy, prompts)


def test_log_probabilities_of_other_weights_end_the_stage(policy: Policy, prompts: list[Prompt]) -> None:
    engine = CopyEngine(policy, moved=0.05)
    loose = drawn(sampler_with(engine, tolerance=5.0), policy, prompts)
    assert loose.engine_logprobs_PKT is not None
    difference = (loose.rollout_logprobs_PKT - loose.engine_logprobs_PKT)[loose.mask_PKT].abs().mean()
    assert 0.01 < float(difference) < 5
    with pytest.raises(StageFailed, match=f"by {float(difference):.3f} nats a token"):
        drawn(sampler_with(engine, tolerance=0.01), policy, prompts)


# -- what the learner makes of it


def test_importance_by_hand() -> None:
    policy = torch.tensor([0.2, 0.6, 0.5, 0.9]).log()
    engine = torch.tensor([0.4, 0.2, 0.5, 0.001]).log()
    mask = torch.tensor([True, True, True, False])
    assert importance_weights(policy, engine, mask, 2.0).tolist() == pytest.approx([0.5, 2.0, 1.0, 1.0])
    assert importance_weights(policy, engine, mask, 10.0).tolist() == pytest.approx([0.5, 3.0, 1.0, 1.0])


@pytest.mark.parametrize("clip", [None, (0.2, 0.28)])
@pytest.mark.parametrize("weights_of", ["completions", "tokens"])
def test_the_gradient_is_that_of_the_literal_corrected_loss(
    policy: Policy, prompts: list[Prompt], clip: tuple[float, float] | None, weights_of: str
) -> None:
    """In float64: -mean over completions of sum over tokens of min(p / q, C) w log p / length, p / q held fixed."""
    rollouts = drawn(sampler_with(CopyEngine(policy, moved=0.05), tolerance=5.0), policy, prompts)
    policy.model.double()
    engine, shape = rollouts.engine_logprobs_PKT, rollouts.tokens_PKT.shape
    assert engine is not None
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(shape if weights_of == "tokens" else shape[:2], generator=generator)
    cap, loss, capped, tokens_seen = 1.02, torch.zeros((), dtype=torch.float64), 0, 0
    for p in range(shape[0]):
        for k in range(shape[1]):
            length = int(rollouts.lengths_PK[p, k])
            tokens = rollouts.tokens_PKT[p, k, :length]
            ids = torch.cat([torch.tensor(rollouts.prompt_tokens[p]), tokens])[None]
            logits = policy.model(ids).logits[0, -length - 1 : -1] / 0.7
            logp = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
            ratio = (logp.detach() - engine[p, k, :length].double()).exp()
            capped, tokens_seen = capped + int((ratio >= cap).sum()), tokens_seen + length
            weight = weights[p, k, :length] if weights_of == "tokens" else weights[p, k]
            loss = loss - (ratio.clamp(max=cap) * weight * logp).sum() / length / rollouts.truncated_PK.numel()
    parameters = [*policy.model.parameters()]
    expected = torch.autograd.grad(loss, parameters)
    options: dict[str, Any] = {"steps": 9, "warmup": 0, "grad_clip": 1e9, "importance_cap": cap, "clip": clip}
    learner = Learner(policy, StageConfig(stage="x", **options), temperature=0.7)
    seen: list[Tensor] = []
    learner._apply = lambda finite, metrics: seen.extend(p.grad.clone() for p in parameters)  # type: ignore
    metrics, _ = learner.update(rollouts, 1, lambda update, groups: weights[groups])
    for got, wanted in zip(seen, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-7)
    assert 0 < capped < tokens_seen
    assert metrics["update/importance_capped"] == pytest.approx(capped / tokens_seen)


def test_every_stage_trains_on_an_engines_completions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines: list[Any] = []

    def engine(pipeline: PipelineConfig, model: Path, run: Path) -> CopyEngine:
        if not engines:
            from gradus.pipeline.policy.loading import load_policy

            engines.append(CopyEngine(load_policy(model, pipeline.policy), moved=1e-3))
        return engines[0]

    monkeypatch.setattr(factory, "_engine", engine)
    stages = [
        {"stage": "sft"},
        {"stage": "dapo", "group_size": 3, "eval_every": 1, "handover": "best"},
        {"stage": "vapo", "group_size": 2},
        {"stage": "vapo", "group_size": 2, "variant": "paper", "critic_warmup": 0},
        {"stage": "gfpo", "group_size": 2, "minibatches": 2, "clip": [0.2, 0.28], "async": 1},
        {"stage": "srpo", "group_size": 2, "refresh": 1, "baseline": "mean"},
    ]
    # A reward that a new policy earns in part, so that every stage has something to learn.
    rewards = [{"reward": "length", "params": {"max": 5, "falloff": 15}}, {"reward": "equation_steps"}]
    run = launch(tmp_path, pipeline(stages, rewards=rewards, rollouts={"engine": "vllm", "tolerance": 1.0}))
    for index in range(1, len(stages)):
        curves = metric_history(run.stage_dir(index) / "journal.jsonl")
        for name in ("sampler/mismatch", "update/importance", "policy/entropy"):
            values = [*curves[name].values()]
            assert len(values) == 2 and all(value > 0 for value in values), (index, name)
        assert all(abs(value - 1) < 0.1 for value in curves["update/importance"].values())
    # A push before each batch and evaluation of weights that the engine has not: srpo's reference takes turns.
    assert len(engines[0].pushes) >= 12


# -- what is said before any compute


def wanted(**options: Any) -> PipelineConfig:
    rollouts = {"engine": "vllm-server", **options.pop("rollouts", {})}
    return pipeline([{"stage": "dapo", "group_size": 2}], rollouts=rollouts, **options)


STATE = {"digest": "", "logprobs_mode": "processed_logprobs", "context": 128}


@contextmanager
def serving(*answers: tuple[int, Any]) -> Iterator[tuple[str, list[str]]]:
    """A server that gives these answers in turn, the last one for ever; its address and what it was asked."""
    left, asked = [*answers], list[str]()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"])).decode()
            asked.append(f"{self.path} {content}")
            status, answer = left.pop(0) if len(left) > 1 else left[0]
            body = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def refusal(config: PipelineConfig) -> UserError:
    with pytest.raises(UserError) as caught:
        checks.check_rollouts(config)
    return caught.value


def test_a_server_that_is_not_there_is_told_before_anything_else() -> None:
    error = refusal(wanted(rollouts={"url": "http://127.0.0.1:9"}))
    assert error.where == "rollouts.url" and "127.0.0.1:9" in str(error.got)
    assert "python -m gradus.pipeline.rollouts.vllm.serve MODEL" in error.expected


@pytest.mark.parametrize(
    ("status", "answer", "words"),
    [
        (404, {"detail": "Not Found"}, "404: Not Found"),
        (200, "<html>", "not JSON"),
        (200, {"results": [None]}, "do not report which weights they hold"),
        (500, {"error": {"message": "'Worker' object has no attribute 'rollout_state'"}}, "no attribute"),
    ],
)
def test_a_server_of_another_kind_is_told_apart(status: int, answer: Any, words: str) -> None:
    with serving((status, answer)) as (url, _):
        assert words in str(refusal(wanted(rollouts={"url": url})).got)


def test_a_server_that_an_earlier_version_started_is_understood() -> None:
    """Its worker keeps the methods and answers that it was started with, so these names cannot change."""
    assert {"rollout_state", "read_rollout_weights"} <= set(vars(RolloutWorker))
    state = STATE | {"model": {"model_type": "llama"}}
    with serving((200, {"results": [state]})) as (url, asked):
        checks.check_rollouts(wanted(rollouts={"url": url}))
        assert json.loads(asked[0].partition(" ")[2]) == {"method": "rollout_state", "args": []}
    assert asked[0].startswith("/collective_rpc ")


@pytest.mark.parametrize(
    ("sampling", "state", "words"),
    [
        ({"temperature": 0.7}, {"logprobs_mode": "raw_logprobs"}, "--logprobs-mode processed_logprobs"),
        ({"top_k": 5}, {}, "--logprobs-mode raw_logprobs"),
        ({"max_tokens": 128}, {}, "a larger --max-model-len"),
    ],
)
def test_a_server_that_cannot_do_what_is_asked(sampling: dict[str, Any], state: dict[str, Any], words: str) -> None:
    with serving((200, {"results": [{**STATE, **state}]})) as (url, _):
        assert words in refusal(wanted(rollouts={"url": url}, sampling=sampling)).fix
        checks.check_rollouts(wanted(rollouts={"url": url}, sampling={"max_tokens": 10}))


def test_a_password_in_the_address_is_refused_and_not_repeated() -> None:
    error = refusal(wanted(rollouts={"url": "http://ann:hush@127.0.0.1:9"}))
    assert "GRADUS_ROLLOUT_KEY" in error.fix and "hush" not in str(error)


@pytest.mark.parametrize("sampling", [{"top_k": 5, "temperature": 0.5}, {"top_p": 0.9, "temperature": 2.0}])
def test_log_probabilities_that_vllm_has_not_are_refused(sampling: dict[str, Any]) -> None:
    error = refusal(wanted(sampling=sampling))
    assert error.where == "sampling" and f"{sampling['temperature']:g}" in str(error.got)


def test_vllm_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    error = refusal(wanted(rollouts={"engine": "vllm"}))
    assert error.where == "rollouts.engine" and "vllm-server" in error.fix


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rollouts": {"engine": "vllm"}, "launch": {"processes": 2}}, "take `vllm-server`"),
        ({"rollouts": {"engine": "sglang"}}, "engine"),
        ({"rollouts": {"url": "file:///etc/passwd"}}, "must begin with http"),
        ({"rollouts": {"memory": 1.5}}, "memory"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        pipeline([{"stage": "dapo"}], **options)


def test_another_engine_may_go_on_with_a_run(tmp_path: Path) -> None:
    from gradus.pipeline.runs.identity import wanted as identity_of

    plain = pipeline([{"stage": "dapo"}])
    assert identity_of(plain, 0) == identity_of(pipeline([{"stage": "dapo"}], rollouts={"engine": "vllm"}), 0)


# -- requests


def test_a_busy_server_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradus.pipeline.rollouts.vllm.http.PAUSE_SECONDS", 0.01)
    with serving((503, {}), (429, {}), (200, {"results": [STATE]})) as (url, asked):
        assert Client(url, 5.0).state() == STATE
        assert len(asked) == 3


def test_workers_that_hold_different_weights_hold_none() -> None:
    with serving((200, {"results": [{**STATE, "digest": "a"}, {**STATE, "digest": "b"}]})) as (url, _):
        assert Client(url, 5.0).state()["digest"] == ""


def test_a_server_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradus.pipeline.rollouts.vllm.http.PAUSE_SECONDS", 0.01)
    with pytest.raises(ServerProblem, match="refused"):
        Client("http://127.0.0.1:9", 0.1).state()


def test_the_key_goes_with_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADUS_ROLLOUT_KEY", "secret")
    assert Client("http://127.0.0.1:9", 1.0)._http.headers["Authorization"] == "Bearer secret"
