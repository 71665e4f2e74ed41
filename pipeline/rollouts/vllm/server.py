"""A vLLM server as the engine: weights go to it in a file that both can read, prompts and completions over HTTP."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from gradus.pipeline.common.errors import StageFailed, UserError
from gradus.pipeline.common.files import sha256
from gradus.pipeline.config import SamplingConfig
from gradus.pipeline.config.compute import RolloutConfig
from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.rollouts.sampler import Completion, Request
from gradus.pipeline.rollouts.vllm.http import Client, ServerProblem
from gradus.pipeline.rollouts.vllm.sampling_params import drawing
from gradus.pipeline.rollouts.weights import pushed_weights

AT_A_TIME = 256
"""The most requests in flight; the server queues those that it has no room for."""


class VllmServer:
    """A server that was started outside the run, with this project's worker class (``serve``)."""

    def __init__(self, config: RolloutConfig, folder: Path):
        """``folder``: where weights are written, and kept only while the server reads them."""
        self.config, self.folder = config, folder
        self.client = Client(config.url, config.time_limit, AT_A_TIME)
        self._model: str | None = None

    def digest(self) -> str:
        """The hash of the weights that were pushed last. Raises: StageFailed."""
        return str(self._asked(self.client.state)["digest"])

    def load(self, digest: str, policy: Policy) -> None:
        """Write the weights to a file, let the server read it, and clear its cache of prompts.

        Raises: StageFailed; UserError where the server has a model of another kind.
        """
        self._check_model(policy)
        path = self.folder / f"{digest}.{os.getpid()}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(pushed_weights(policy), path, metadata={"format": "pt"})
            self._asked(self.client.workers, "read_rollout_weights", digest, str(path.absolute()), sha256(path))
            self._asked(self.client.post, "/reset_prefix_cache", {})
        finally:
            path.unlink(missing_ok=True)

    def generate(
        self,
        requests: list[Request],
        ends: tuple[int, ...],
        options: SamplingConfig,
        done: Callable[[int, list[Completion]], None],
    ) -> None:
        """Send one request per prompt, all at the same time. Raises: StageFailed."""
        if self._model is None:
            self._model = self._served()
        with ThreadPoolExecutor(min(AT_A_TIME, len(requests)), thread_name_prefix="rollouts") as threads:
            futures = {threads.submit(self._complete, r, ends, options): index for index, r in enumerate(requests)}
            try:
                for future in as_completed(futures):
                    done(futures[future], future.result())
            finally:
                threads.shutdown(wait=False, cancel_futures=True)

    def _complete(self, request: Request, ends: tuple[int, ...], options: SamplingConfig) -> list[Completion]:
        content = {"model": self._model, "prompt": request.tokens, "return_token_ids": True}
        answer = self._asked(self.client.post, "/v1/completions", content | drawing(request, options, ends))
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        return [
            Completion(each["token_ids"], each["logprobs"]["token_logprobs"], each["finish_reason"] == "stop")
            for each in choices
        ]

    def _check_model(self, policy: Policy) -> None:
        theirs, ours = self._asked(self.client.state)["model"], policy.model.config.get_text_config()
        other = {name: value for name, value in theirs.items() if value != getattr(ours, name, None)}
        if other:
            raise UserError(
                "the vLLM server serves another model than the policy",
                where="rollouts.url",
                got=", ".join(f"{name} {value}" for name, value in other.items()),
                expected=", ".join(f"{name} {getattr(ours, name, None)}" for name in other),
                fix="start it with the policy's own folder or Hub id, or with any checkpoint of the run",
            )

    def _served(self) -> str:
        """The server's name for its model."""
        return str(self._asked(self.client.get, "/v1/models")["data"][0]["id"])

    def _asked(self, request: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return request(*arguments)
        except ServerProblem as problem:
            raise StageFailed(
                f"the vLLM server at {self.config.url} cannot go on: {problem}. Once it works again, resume the run"
            ) from None
