"""What wraps a question and what ends an answer is read off a model's chat template once, and then kept."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from chat_models import CHATML, QUESTION, described, load

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PolicyConfig
from gradus.pipeline.policy.fit import long_demonstrations, shown_prompt, template_notes
from gradus.pipeline.policy.loading import load_prompts
from gradus.pipeline.types import Prompt

TURN_ENDS = {
    "the token behind the answer": (CHATML, {}, ["<|im_end|>", "<|end|>"]),
    "the tokenizer's own": (CHATML.replace("<|im_end|>", "<|end|>"), {}, ["<|end|>"]),
    "none in the template": (CHATML.replace("<|im_end|>", "."), {}, ["<|end|>"]),
    "several": (CHATML.replace("<|im_end|>", " <|pad|><|im_end|>"), {}, ["<|pad|>", "<|end|>"]),
    "named": (CHATML, {"eos": "<|end|>"}, ["<|end|>"]),
    "two named": (CHATML, {"eos": ["<|end|>", "<|im_end|>"]}, ["<|end|>", "<|im_end|>"]),
    "a plain template": (CHATML, {"template": "plain"}, ["<|end|>"]),
    "no answers in the template": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('no') }}{% endif %}"
        "{{ m.content }}{% endfor %}", {}, ["<|end|>"]),
}  # fmt: skip


@pytest.mark.parametrize("case", TURN_ENDS)
def test_what_ends_a_turn_is_read_off_the_template(folder: Path, case: str) -> None:
    template, options, ends = TURN_ENDS[case]
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    policy = load(folder, **options)
    assert policy.tokenizer.convert_ids_to_tokens(list(policy.template.eos_ids)) == ends
    assert policy.encode_completion("7")[-1] == policy.template.eos_ids[0], "what is trained is what ends a turn"
    assert load_prompts(folder, PolicyConfig(path=str(folder), **options)).template == policy.template
    policy.save(folder.parent / "saved")
    assert load(folder.parent / "saved", eos="<|im_start|>").template == policy.template, "chosen once"


def test_an_unknown_end_is_refused(folder: Path) -> None:
    with pytest.raises(UserError) as refused:
        load(folder, eos="<|im_ende|>")
    assert refused.value.where == "policy.eos" and "<|im_end|>" in refused.value.fix


def test_arguments_and_the_system_turn_reach_the_template_and_are_kept(folder: Path) -> None:
    reading = (
        CHATML + "{% if think is defined and not think %}<think></think>{% endif %}{% if tools %}{{ tools }}{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(reading, encoding="utf-8")
    asked = {"system": "Be <|im_end|> 12", "template_args": {"think": False, "tools": [{"name": "add"}]}}
    policy = load(folder, **asked)
    shown = shown_prompt(policy.prompts, QUESTION)
    assert shown.startswith(
        "«<|im_start|>»system\nBe «<|im_end|>» 12«<|im_end|>»\n«<|im_start|>»user\n1 + 2 =«<|im_end|>»"
    )
    assert (
        "think" in policy.tokenizer.decode(policy.encode_prompt(QUESTION))
        and template_notes(policy.prompts, QUESTION) == []
    )
    own = Prompt("p", "1", "1", turns=({"role": "system", "content": "3"}, {"role": "user", "content": "1"}))
    assert "«<|im_start|>»system\n3«<|im_end|>»\n«<|im_start|>»user" in shown_prompt(policy.prompts, own)
    policy.save(folder.parent / "saved")
    again = load(folder.parent / "saved", system="other")
    assert again.template == policy.template and again.encode_prompt(QUESTION) == policy.encode_prompt(QUESTION)
    with pytest.raises(UserError) as refused:
        load(folder, template_args={"thinks": False})
    assert refused.value.where == "policy.template_args.thinks"


@pytest.mark.parametrize("options", [{"path": "m", "template": "plain", "system": "x"},
                                     {"architecture": {"model_type": "llama"}, "template_args": {"a": 1}},
                                     {"architecture": {"model_type": "llama"}, "eos": "x"},
                                     {"path": "m", "template_args": {"tokenize": True}}])  # fmt: skip
def test_options_of_a_chat_template_are_refused_where_there_is_none(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"leave it out|existing model|decided for each"):
        PolicyConfig(**options)


def test_a_template_without_a_system_turn_is_told(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(CHATML.replace("%}<", "%}{% if m.role != 'system' %}<", 1).replace(
        "{% endfor", "{% endif %}{% endfor"), encoding="utf-8")  # fmt: skip
    assert "drops the system turn" in template_notes(load(folder, system="Be brief.").prompts, QUESTION)[0]
    (folder / "chat_template.jinja").write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML,
        encoding="utf-8",
    )
    with pytest.raises(UserError) as refused:
        load(folder, system="Be brief.")
    assert "System role not supported" in str(refused.value.got) and refused.value.where.startswith("policy.template")
    assert "policy.system" in refused.value.fix
    load(folder)


def test_two_first_tokens_are_told(folder: Path) -> None:
    described(folder, "tokenizer_config.json", bos_token="<|im_start|>")
    assert template_notes(load(folder).prompts, QUESTION) == []
    (folder / "chat_template.jinja").write_text("<|im_start|>" + CHATML, encoding="utf-8")
    assert "two beginning-of-sequence tokens" in template_notes(load(folder).prompts, QUESTION)[0]


def test_a_template_that_reads_the_clock_is_told_one_day_for_ever(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%Y %H:%M') }}" + CHATML, encoding="utf-8")
    policy = load(folder)
    assert datetime.date.fromisoformat(policy.template.day)
    policy.save(folder / "saved")
    stored = json.loads((folder / "saved" / "template.json").read_text(encoding="utf-8"))
    described(folder / "saved", "template.json", day="1999-12-31")
    again = load(folder / "saved")
    assert again.tokenizer.decode(again.encode_prompt(QUESTION)).startswith("1999 00:00")
    del stored["day"]
    (folder / "saved" / "template.json").write_text(json.dumps(stored), encoding="utf-8")
    assert load(folder / "saved").template.day == "", "a policy of an earlier version keeps what it had"


def test_a_damaged_template_of_a_policy_is_the_files_fault(folder: Path) -> None:
    for content in ("{", "[]", '{"kind": "chat"}', '{"kind": "chat", "eos_ids": 3}'):
        (folder / "template.json").write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match="template"):
            load(folder)


def test_demonstrations_longer_than_completions_may_be_are_told(folder: Path) -> None:
    policy = load(folder)
    shown = [Prompt("p", "1", "1", demonstration="7" * length) for length in (3, 4, 5, 9)]
    assert long_demonstrations(policy, [*shown, QUESTION], 10) == ""
    told = long_demonstrations(policy, [*shown, QUESTION], 5)
    assert told.startswith("50% of the demonstrations") and "max_tokens (5)" in told and "the longest 10" in told
