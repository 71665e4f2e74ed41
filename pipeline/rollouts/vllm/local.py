"""vLLM in the training process: its weights are replaced in place, and each group is returned when it ends."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from gradus.pipeline.common.errors import StageFailed
from gradus.pipeline.config import PipelineConfig, SamplingConfig
from gradus.pipeline.policy.devices import pick_device
from gradus.pipeline.policy.loading import weights_dtype
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.rollouts.sampler import Completion, Request
from gradus.pipeline.rollouts.vllm.sampling_params import drawing
from gradus.pipeline.rollouts.vllm.serve import WORKER
from gradus.pipeline.rollouts.weights import pushed_weights

CPU_CACHE = 2**30
"""Bytes of vLLM's cache on a CPU, where the memory is shared with everything else on the machine."""


class LocalVllm:
    """A vLLM engine, started from a model folder. Its weights are replaced by the first push."""

    def __init__(self, pipeline: PipelineConfig, folder: Path, logprobs_mode: str):
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, so that no tensor is sent
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # the learner's threads stay where they are
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # each push would warn of layers without weights
        import vllm  # type: ignore[import-not-found, missing-import]

        self._params = vllm.SamplingParams
        config, device = pipeline.rollouts, pick_device(pipeline.policy.device).type
        dtype = config.dtype
        if dtype == "auto":
            dtype = "bfloat16" if device == "cuda" else str(weights_dtype(pipeline.policy)).removeprefix("torch.")
        room: dict[str, Any] = {"gpu_memory_utilization": config.memory}
        if device == "cpu":
            # Compiling would take minutes at every start. For chunked prefill see WHOLE_PROMPTS in serve.py.
            room = {"kv_cache_memory_bytes": CPU_CACHE, "enforce_eager": True, "enable_chunked_prefill": False}
        with _torch_as_it_is():
            self.llm: Any = vllm.LLM(
                model=str(folder), dtype=dtype, max_model_len=config.context, logprobs_mode=logprobs_mode, seed=0,
                generation_config="vllm", skip_tokenizer_init=True, disable_log_stats=True, use_tqdm_on_load=False,
                trust_remote_code=pipeline.policy.trust_remote_code, worker_extension_cls=WORKER, **room,
            )  # fmt: skip
        self._numbers = itertools.count()
        self._one_at_a_time = threading.Lock()

    def digest(self) -> str:
        """The hash of the weights that were pushed last."""
        return str(self.llm.collective_rpc("rollout_state")[0]["digest"])

    def load(self, digest: str, policy: Policy) -> None:
        """Replace the weights, and clear the cache of prompts, which the old weights computed."""
        with self._one_at_a_time:
            self.llm.collective_rpc("take_rollout_weights", args=(digest, pushed_weights(policy)))
            self.llm.reset_prefix_cache()

    def generate(
        self,
        requests: list[Request],
        ends: tuple[int, ...],
        options: SamplingConfig,
        done: Callable[[int, list[Completion]], None],
    ) -> None:
        """Complete all prompts at the same time, as far as the cache holds them. Raises: StageFailed."""
        with self._one_at_a_time:
            engine, waiting = self.llm.llm_engine, dict[str, int]()
            try:
                for index, request in enumerate(requests):
                    name = f"rollout-{next(self._numbers)}"
                    params = self._params(**drawing(request, options, ends), detokenize=False, output_kind=_final())
                    engine.add_request(name, {"prompt_token_ids": request.tokens}, params)
                    waiting[name] = index
                while engine.has_unfinished_requests():
                    for output in engine.step():
                        if output.finished:
                            done(waiting.pop(output.request_id), [_completion(each) for each in output.outputs])
            except ValueError as error:
                raise StageFailed(f"vLLM cannot complete a prompt: {error}") from error
            finally:
                if waiting:
                    engine.abort_request([*waiting])


def _completion(output: Any) -> Completion:
    tokens = [*output.token_ids]
    found = [at[token].logprob for at, token in zip(output.logprobs, tokens, strict=True)]
    return Completion(tokens, found, ended=output.finish_reason == "stop")


def _final() -> Any:
    from vllm.sampling_params import RequestOutputKind  # type: ignore[import-not-found]

    return RequestOutputKind.FINAL_ONLY


@contextlib.contextmanager
def _torch_as_it_is() -> Iterator[None]:
    """Restore what vLLM sets for the whole process: the number of threads, the random numbers, and, on a CPU, even the
    function that sets the number of threads."""
    threads, setter = torch.get_num_threads(), torch.set_num_threads
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads = setter
        torch.set_num_threads(threads)
