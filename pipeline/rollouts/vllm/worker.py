"""Additional methods of vLLM's workers: load new weights, and report which weights and options they have.

vLLM adds this class to its workers when it is started with ``--worker-extension-cls`` and the name of this class. It
needs vLLM and nothing else of this project.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

SIZES = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "vocab_size")  # fmt: skip
"""The sizes that must be equal for one model to take the weights of another, by their names in the configuration."""


class RolloutWorker:
    """Methods that are added to every vLLM worker. They return plain data, because it crosses processes."""

    rollout_digest: str = ""
    """The hash of the weights that were pushed last; empty before the first push and while weights are replaced."""

    def rollout_state(self) -> dict[str, Any]:
        """Which weights the worker holds, and the options that its log-probabilities depend on."""
        model = self.vllm_config.model_config  # type: ignore[attr-defined]
        return {
            "digest": self.rollout_digest,
            "logprobs_mode": str(model.logprobs_mode),
            "context": int(model.max_model_len),
            "model": {name: getattr(model.hf_text_config, name, None) for name in SIZES},
        }

    def take_rollout_weights(self, digest: str, weights: dict[str, Any]) -> None:
        """Replace the weights by these tensors, under the names of a Hugging Face checkpoint."""
        self._replace(digest, iter(weights.items()))

    def read_rollout_weights(self, digest: str, path: str, sha256: str) -> None:
        """Replace the weights by those of a safetensors file. Raises: ValueError where the file has another hash."""
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise ValueError(f"{path} is not the file that was written: {found[:16]}, not {sha256[:16]}")
        self._replace(digest, _tensors(path))

    def _replace(self, digest: str, weights: Iterator[tuple[str, Any]]) -> None:
        self.rollout_digest = ""
        self.reload_weights(weights_iterator=weights)  # type: ignore[attr-defined]
        # On a CPU a layer computes with a copy of its weights in another layout. vLLM 0.32 copies them again only for
        # layers that the checkpoint names, and so not for a head that is tied to the embedding.
        for module in self.model_runner.get_model().modules():  # type: ignore[attr-defined]
            if hasattr(module, "cpu_linear") and module.weight.numel():
                module.quant_method.process_weights_after_loading(module)
        self.rollout_digest = digest


def _tensors(path: str) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  not a dictionary
            yield name, file.get_tensor(name)
