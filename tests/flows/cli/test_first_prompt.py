"""The first prompt is shown by `check` and at the start of a run; a model that cannot do the task is refused."""

from __future__ import annotations

from pathlib import Path

import torch
from command_line import Gradus
from safetensors.torch import load_file, save_file
from tiny_policies import tiny_policy

CHAT = (
    "{% if messages[0].role == 'system' %}<|pad|>{{ messages[0].content }}{% set messages = messages[1:] %}{% endif %}"
    "<|unk|>{{ messages[0].content }}<|unk|>{% if answer_short %}1{% endif %}"
)


def chat_model(folder: Path) -> Path:
    policy = tiny_policy()
    policy.tokenizer.chat_template = CHAT
    policy.save(folder / "model")
    (folder / "model" / "template.json").unlink()
    return folder / "model"


def test_the_first_prompt_is_shown_with_its_special_tokens(gradus: Gradus) -> None:
    folder = chat_model(gradus.folder)
    asked = f"policy={{path: {folder}, system: '7 * 8', template_args: {{answer_short: true}}}}"
    shown = gradus("check", str(gradus.config), "--set", asked, "--show-prompt").output
    assert "is valid" in shown and "«<|pad|>»7 * 8«<|unk|>»" in shown and "drops the system" not in shown
    new = gradus("check", str(gradus.config), "--show-prompt").output
    assert "«<|unk|>»" not in new and "first prompt" in new
    assert "first prompt" not in gradus("check", str(gradus.config)).output
    (folder / "chat_template.jinja").write_text("{{ messages[-1].content }}", encoding="utf-8")
    asked = f"policy={{path: {folder}, system: 7 * 8}}"
    words = [str(gradus.config), "--set", asked, "--set", "sampling.max_tokens=2", "--runs", str(gradus.runs)]
    assert "drops the system turn" in gradus("check", *words, "--show-prompt").output
    said = gradus("run", *words, "--engine", "none").output
    assert "first prompt: '" in said and "drops the system turn" in said
    assert "100% of the demonstrations have more than sampling.max_tokens (2) tokens" in said
    assert "cut at max_tokens" in said
    again = ["resume", "tiny", "--runs", str(gradus.runs), "--from", "dapo", "--engine", "none"]
    assert "first prompt" not in gradus(*again).output


def test_a_model_that_computes_no_numbers_is_refused(gradus: Gradus) -> None:
    folder = chat_model(gradus.folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], torch.nan)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    words = [str(gradus.config), "--set", f"policy={{path: {folder}}}", "--runs", str(gradus.runs), "--engine", "none"]
    said = gradus("run", *words, code=2).stderr
    assert "outputs are not finite" in said and "model.norm.weight" in said
