"""A device other than the CPU, which here is a pretended one: the same numbers, no stray operand, and few waits for it.

``helpers/pretend_runs.py`` computes everything in a process of its own; the tests look at its parts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from paths import HELPERS, search_path
from pretend_runs import ARCHITECTURES, CHAINS

from gradus.pipeline.config import SamplingConfig
from gradus.pipeline.policy.forward.lm_head import logprobs_from_logits, pieces
from gradus.pipeline.policy.forward.packing import Pack
from gradus.pipeline.rollouts.builtin import draw_tokens, truncate
from gradus.pipeline.rollouts.builtin.draw import as_integers, running_sums, summable


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("device")
    program = [sys.executable, str(HELPERS / "pretend_runs.py"), str(folder)]
    environment = os.environ | {"PYTHONPATH": search_path(), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_device_refuses_what_cuda_refuses(computed: dict[str, Any]) -> None:
    assert len(computed["refused"]) == 9 and all(computed["refused"].values()), computed["refused"]


@pytest.mark.parametrize("how", ["drawn", "greedy"])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_engine_samples_on_a_device_as_on_the_cpu(computed: dict[str, Any], kind: str, how: str) -> None:
    same, apart = computed["sampled"][f"{kind}, {how}"]
    assert same and apart < 1e-5


@pytest.mark.parametrize("chain", CHAINS)
def test_every_stage_and_variant_trains_on_a_device_as_on_the_cpu(computed: dict[str, Any], chain: str) -> None:
    for label, (apart, moved) in computed[chain]["stages"].items():
        assert apart < 1e-6 < 1e-5 < moved, label


@pytest.mark.parametrize("chain", CHAINS)
def test_a_stage_resumed_on_a_device_ends_with_the_same_weights(computed: dict[str, Any], chain: str) -> None:
    through, resumed = computed[chain]["resumed"]
    assert through == resumed


def test_the_host_waits_for_a_device_once_in_many_tokens(computed: dict[str, Any]) -> None:
    assert computed["waits"]["32 tokens"] <= 32 / 4


def test_the_host_waits_as_often_for_one_pass_as_for_many(computed: dict[str, Any]) -> None:
    """The loss, the norm of the gradient, and how far the policy moved."""
    assert computed["waits"]["many passes"] == computed["waits"]["one pass"]
    assert sum(computed["waits"]["one pass"].values()) <= 3


def test_a_restored_optimizer_does_not_ask_the_device_for_its_count_of_steps(computed: dict[str, Any]) -> None:
    assert computed["waits"]["restored"] == {"not fused": 0, "fused": 0}


def test_integers_draw_the_tokens_that_probabilities_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU draws with, because its sums of floats depend on their order."""
    generator = torch.Generator().manual_seed(3)
    logits, uniforms = torch.randn(40, 300, generator=generator) * 4, torch.rand(40, generator=generator)
    for options in (SamplingConfig(max_tokens=1), SamplingConfig(max_tokens=1, top_p=0.7, top_k=50)):
        wanted, kept = draw_tokens(logits, uniforms, options)[0], truncate(logits.softmax(-1), options)
        with monkeypatch.context() as patch:
            patch.setattr("gradus.pipeline.rollouts.builtin.draw.summable", as_integers)
            assert torch.equal(draw_tokens(logits, uniforms, options)[0], wanted)
            assert torch.equal(truncate(logits.softmax(-1), options), kept)
            # A draw at the very end of the distribution is still one of its tokens.
            last = draw_tokens(logits, torch.full((40,), 1 - 2**-24), options)[0]
            assert bool((kept.gather(-1, last[:, None]) > 0).all())


def test_what_a_device_adds_up_are_integers() -> None:
    probs = torch.rand(3, 50, device="meta")
    assert summable(probs).dtype == running_sums(summable(probs)).dtype == torch.int32
    assert summable(torch.rand(3, 50)).dtype == torch.float32


@pytest.mark.parametrize("autocast", [False, True])
def test_masks_are_of_the_type_and_the_row_length_that_attention_on_a_gpu_takes(autocast: bool) -> None:
    """A mask of another type is converted in every layer, one of another row length is copied."""
    pack = Pack.of([[1, 2, 3], [4, 5]], [0, 0, 1], [[6, 7], [8, 9, 10], [11]], torch.device("cpu"))
    for bucket in pack.buckets:
        for window in (None, 2):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                bias = bucket.bias(window, torch.float32)
            assert bias.dtype == (torch.bfloat16 if autocast else torch.float32)
            assert all(stride % 16 == 0 for stride in bias.stride()[:-1]) and bias.stride(-1) == 1


def test_padding_takes_no_place_more_often_than_a_group_has_completions() -> None:
    """A GPU adds up the gradients of one place one after the other, also those of padding, which are zero."""
    completions = [[1] * 60] + [[2] * length for length in (2, 2, 3, 3, 4, 4, 5)]
    pack = Pack.of([[3] * 9, [4]], [0, 0, 0, 0, 1, 1, 1, 1], completions, torch.device("cpu"))
    for places in [pack.prompts, *(each for bucket in pack.buckets for each in (bucket.tokens, bucket.seen))]:
        assert int(places.flatten().bincount().max()) <= 2 * len(completions)
        assert int(places.max()) < len(pack.ids)


def test_entropies_under_autocast_are_those_of_the_logits() -> None:
    logits = torch.randn(5, 400, generator=torch.Generator().manual_seed(1)) * 5 + 30
    wanted = logprobs_from_logits(logits, torch.arange(5), entropies=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = logprobs_from_logits(logits, torch.arange(5), entropies=True)
    assert torch.equal(found, wanted)


def test_a_gpu_takes_the_head_in_fewer_pieces() -> None:
    cpu, cuda = (list(pieces(10_000, 151_936, torch.device(kind))) for kind in ("cpu", "cuda"))
    for cut in (cpu, cuda):
        assert [row for piece in cut for row in range(10_000)[piece]] == list(range(10_000))
    assert len(cuda) < len(cpu) / 3
