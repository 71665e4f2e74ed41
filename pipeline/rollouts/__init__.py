"""Who completes prompts in training: the sampler in this process, or vLLM, in it or as a server.

Whichever it is, a batch has the same form and passes the same check of which weights it was sampled with. The modules
:mod:`vllm_worker` and :mod:`vllm_serve` also run where vLLM is installed and the rest of this project is not.
"""
