"""The tags of a policy's thoughts are read off its tokenizer and template, and rewards look behind them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_models import CHATML, QUESTION, described
from small_pipeline import STAGE_CONFIGS, launch, pipeline
from transformers import AutoTokenizer

from gradus.pipeline.config import PolicyConfig
from gradus.pipeline.execution.inference import evaluate_checkpoint
from gradus.pipeline.policy.fit import template_notes
from gradus.pipeline.policy.loading import load_prompts
from gradus.pipeline.policy.policy import TEMPLATE_FILE
from gradus.pipeline.policy.thoughts import stored_thoughts, tag_pairs
from gradus.pipeline.rewards import extract_answer
from gradus.pipeline.rewards.registry import find
from gradus.pipeline.types import Prompt, Thoughts

OPENS = "{% if add_generation_prompt and enable_thinking | default(true) %}<r1:reason>\n{% endif %}"
STRIPS = "{% set said = messages[-1].content[messages[-1].content.find('</reasoning>'):] %}{# after <reasoning> #}"
CASES: dict[str, tuple[str, list[str], dict[str, Any], Thoughts]] = {
    "special tokens": (CHATML, ["<|START_THINKING|>", "<|END_THINKING|>"], {},
                       Thoughts((("<|START_THINKING|>", "<|END_THINKING|>"),))),
    "ordinary tokens, plain template": (CHATML, ["<think_begin>", "<think_end>"], {"template": "plain"},
                                        Thoughts((("<think_begin>", "<think_end>"),))),
    "text that the template strips": (STRIPS + CHATML, [], {}, Thoughts((("<reasoning>", "</reasoning>"),))),
    "text that the prompt ends with": (CHATML + OPENS + "{# </r1:reason> #}", [], {},
                                       Thoughts((("<r1:reason>", "</r1:reason>"),), "<r1:reason>")),
    "the same, switched off": (CHATML + OPENS + "{# </r1:reason> #}", [],
                               {"template_args": {"enable_thinking": False}},
                               Thoughts((("<r1:reason>", "</r1:reason>"),))),
    "none": (CHATML + "{# <b> </b> <think> #}", ["<tool>", "</tool>", "<|thought|>"], {}, Thoughts()),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_tags_of_a_policy_are_read_kept_and_looked_behind(folder: Path, case: str) -> None:
    template, added, options, expected = CASES[case]
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(added, special_tokens="special" in case)
    tokenizer.save_pretrained(folder)
    described(folder, vocab_size=400)
    prompts = load_prompts(folder, PolicyConfig(path=str(folder), **options))
    assert prompts.template.thoughts == expected
    assert bool(template_notes(prompts, QUESTION)) is bool(expected.opened)
    record = prompts.template.record()
    assert ("thoughts" in record) is (expected != Thoughts())
    (folder / TEMPLATE_FILE).write_text(json.dumps(record), encoding="utf-8")
    assert load_prompts(folder, PolicyConfig(path=str(folder))).template == prompts.template
    thoughts = stored_thoughts(folder / TEMPLATE_FILE)
    assert thoughts == expected
    for begin, end in expected.pairs:
        texts = {f"{begin}answer: 3{end}answer: 4": 1.0, f"{begin}answer: 3{end}4": 1.0, f"{begin}answer: 4": 0.0,
                 f"answer: 3{end}4": 1.0, "answer: 4": float(not expected.opened)}  # fmt: skip
        asked = Prompt("p", "?", "4")
        assert [find("exact_answer").score(asked, text, {}, thoughts) for text in texts] == list(texts.values())
        otherwise = Prompt("p", "?", "4", template_args={"enable_thinking": False})  # of a task or a stage
        assert find("exact_answer").score(otherwise, "answer: 4", {}, thoughts) == 1.0
        assert find("exact_answer").score(otherwise, f"{begin}answer: 4", {}, thoughts) == 0.0
        assert not template_notes(prompts, otherwise)
        assert extract_answer(f"answer: 4x{begin}answer: 5") == "5", "for this policy alone"


def test_tags_of_other_things_are_no_thoughts() -> None:
    assert tag_pairs(["<b>", "</b>", "<think>", "</thinking>", "<|think|>", "[/THINK]", "a </think> b"]) == ()


def test_a_run_looks_behind_the_thoughts_of_its_policy(folder: Path, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").write_text(CHATML + OPENS + "{# </r1:reason> #}", encoding="utf-8")
    (tmp_path / "thoughtful.py").write_text(
        "from gradus.pipeline.rewards import extract_answer\n\n\ndef unanswered(prompt, completion):\n"
        "    return float(extract_answer('answer: 4') is None and extract_answer('</r1:reason>4') == '4')\n"
    )
    config = pipeline(
        [{"stage": "dapo", "steps": 1}],
        policy={"path": str(folder), "device": "cpu"},
        rewards=[{"reward": "thoughtful:unanswered"}],
    )
    run = launch(tmp_path, config)
    result = run.result(0)
    assert result is not None and result["accuracy_before"] == result["accuracy_after"] == 1.0
    assert evaluate_checkpoint(run.path, STAGE_CONFIGS)["accuracy"] == 1.0


def test_a_thought_that_a_stage_s_own_arguments_open_is_looked_behind(folder: Path, tmp_path: Path) -> None:
    """The reward says whether an unfinished completion has no answer: so it is in the stage, and not before it."""
    opens = OPENS.replace("default(true)", "default(false)")
    (folder / "chat_template.jinja").write_text(CHATML + opens + "{# </r1:reason> #}", encoding="utf-8")
    (tmp_path / "opened.py").write_text(
        "from gradus.pipeline.rewards import extract_answer\n\n\ndef unanswered(prompt, completion):\n"
        "    return float(extract_answer('answer: 4') is None)\n"
    )
    config = pipeline(
        [{"stage": "dapo", "steps": 1, "template_args": {"enable_thinking": True}}],
        policy={"path": str(folder), "device": "cpu"},
        rewards=[{"reward": "opened:unanswered"}],
    )
    run = launch(tmp_path, config)
    result = run.result(0)
    assert result is not None and (result["accuracy_before"], result["accuracy_after"]) == (0.0, 1.0)
    assert evaluate_checkpoint(run.path, STAGE_CONFIGS)["accuracy"] == 1.0
