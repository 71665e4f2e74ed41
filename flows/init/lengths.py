"""How long completions may become, and what happens to prompts that leave no room for them."""

from __future__ import annotations

import math
from typing import Any

from gradus.flows.init.data import Data
from gradus.flows.init.guesses import Guesses, percentile
from gradus.flows.init.model import Model
from gradus.pipeline.common.errors import UserError

TEMPLATE_TOKENS = 64
"""Room for what a chat template writes around a question, beside a system turn."""
UNSEEN, UNSEEN_NEW = 512, 64
"""Tokens of a completion where there is none to measure: of a pretrained model, and of a small new one."""
SHARE, ROOM = 0.99, 1.25
"""The demonstrations that fit, and the room for completions beside them."""


def set_lengths(config: dict[str, Any], model: Model, data: Data, guesses: Guesses) -> None:
    """Set ``sampling.max_tokens``, and ``task.overlong_prompts`` or the positions of a new model. Raises: UserError."""
    around = (TEMPLATE_TOKENS if model.template else 4) + sum(model.counts([config["policy"].get("system") or ""]))
    prompts = [count + around for count in model.counts(data.questions)]
    shown = model.counts(data.demonstrations)
    usual, longest = percentile(prompts, SHARE), max(prompts)
    unit = "tokens" if "tokenizer.json" in model.files else "bytes (no token is less than one)"
    if shown:
        wanted = 8 * math.ceil(ROOM * (percentile(shown, SHARE) + 1) / 8)
        why = f"99 of 100 demonstrations have at most {percentile(shown, SHARE):,} {unit}, half of them " \
              f"{percentile(shown, 0.5):,}, and a quarter more"  # fmt: skip
    else:
        wanted = UNSEEN_NEW if model.new else UNSEEN
        why = "a guess, because there is no completion to measure; `gradus advise` measures those of the model"
    if model.new:
        positions = 2 ** math.ceil(math.log2(ROOM * longest + wanted))
        model.policy["architecture"]["max_position_embeddings"] = positions
        guesses.add("policy", f"max_position_embeddings {positions:,}: room for the longest prompt and a completion")
    elif model.positions is not None and usual + wanted > model.positions:
        room = max(model.positions - usual, model.positions // 2)
        why += (
            f"; but the model takes {model.positions:,} tokens, and prompts need {min(usual, model.positions - room):,}"
        )
        wanted = room
        if cut := sum(count > room for count in shown):
            guesses.add("sampling", f"{cut / len(shown):.0%} of the demonstrations are longer and will be cut")
    config["sampling"]["max_tokens"] = wanted
    guesses.add("sampling", f"max_tokens {wanted:,}: {why}")
    limit = math.inf if model.new or model.positions is None else model.positions - wanted
    over = sum(count > limit for count in prompts)
    if over == len(prompts):
        raise UserError(
            "no prompt leaves the model room for a completion", where="--model",
            got=f"{model.positions:,} positions; the shortest prompt has {min(prompts):,} tokens with its template",
            expected="a model that takes a prompt and its completion", fix="choose another model, or shorter prompts",
        )  # fmt: skip
    if over:
        config["task"]["overlong_prompts"] = "drop"
        found = f"{over:,} of {len(prompts):,} prompts, up to {longest:,} {unit} with their template"
        guesses.add("task", f"overlong_prompts drop: {found}, leave no room for a completion")
    else:
        guesses.add("task", f"prompts have up to {longest:,} {unit} with their template: all fit")
