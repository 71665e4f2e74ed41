"""Real checkpoints disagree with themselves: what each such folder leads to, when it is loaded and when it is saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_models import CHATML, QUESTION, described, load
from safetensors.torch import load_file, save_file
from tiny_policies import TEXTS, tiny_policy
from transformers import AutoModelForCausalLM

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PolicyConfig
from gradus.pipeline.config.policy import LoraConfig
from gradus.pipeline.policy.checks import check_lengths, check_policy
from gradus.pipeline.policy.creation import create_policy
from gradus.pipeline.policy.fit import check_finite, position_limit
from gradus.pipeline.policy.loading import load_policy
from gradus.pipeline.policy.lora import add_adapters, check_adapters


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    found = load_file(folder / "model.safetensors")
    change(found)
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"temperature": 0.9, "top_p": 0.6}, {"do_sample": True, "temperature": 0.9, "top_p": 0.6}),
        ({"do_sample": False, "top_k": 20}, {"do_sample": True, "top_k": 20}),
        ({"length_penalty": 2.0, "temperature": 0.5}, {}),
        ({"output_scores": True}, {}),
        ({"temperature": 0.0, "do_sample": True, "top_k": 1}, {"temperature": 0.0, "do_sample": True, "top_k": 1}),
    ],
)
def test_settings_of_generation_that_contradict_each_other_can_be_saved(
    folder: Path, settings: dict[str, Any], kept: dict[str, Any]
) -> None:
    described(folder, "generation_config.json", **settings)
    policy = load(folder)
    policy.save(folder.parent / "saved")
    written = json.loads((folder.parent / "saved" / "generation_config.json").read_text(encoding="utf-8"))
    assert written.items() >= kept.items()
    assert written["eos_token_id"] == list(policy.template.eos_ids) and "length_penalty" not in written
    assert load(folder.parent / "saved").template == policy.template


def test_a_description_that_takes_one_end_only(tmp_path: Path) -> None:
    options = {"model_type": "inkling_text", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    options |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "moe_intermediate_size": 16}
    options |= {"n_routed_experts": 4, "num_experts_per_tok": 2}
    policy = create_policy(PolicyConfig(architecture=options, device="cpu"), TEXTS, 0)
    policy.save(tmp_path / "model")
    assert load(tmp_path / "model").template == policy.template


def test_a_folder_claims_a_tie_only_where_it_holds(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny_policy(tie_word_embeddings=True).save(folder)
    weights(folder, lambda w: w.update({"lm_head.weight": torch.ones_like(w["model.embed_tokens.weight"])}))
    load(folder).save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8"))["tie_word_embeddings"] is False
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert bool((saved.lm_head.weight == 1).all()) and not bool((saved.model.embed_tokens.weight == 1).all())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
def test_weights_that_are_no_numbers_are_refused(folder: Path, name: str, value: float) -> None:
    weights(folder, lambda w: w[name][3].fill_(value))
    with pytest.raises(UserError, match="outputs are not finite") as refused:
        check_finite(load(folder), [QUESTION])
    assert name in str(refused.value.got) and refused.value.where == "policy.path"


def test_numbers_too_large_for_their_type_are_refused(folder: Path) -> None:
    large = {"model.layers.1.mlp.down_proj.weight": 6e4, "model.layers.1.mlp.up_proj.weight": 100.0}
    weights(folder, lambda w: [w[name].fill_(value) for name, value in large.items()])
    check_finite(load(folder), [QUESTION])
    with pytest.raises(UserError, match="outputs are not finite") as refused:
        check_finite(load(folder, dtype="float16"), [QUESTION])
    assert refused.value.where == "policy.dtype" and "bfloat16" in refused.value.fix


GPT2 = {"model_type": "gpt2", "n_positions": 40, "n_embd": 8, "n_head": 2, "n_layer": 1}
LLAMA = {"model_type": "llama", "max_position_embeddings": 40, "hidden_size": 32, "num_hidden_layers": 1,
         "intermediate_size": 64, "num_attention_heads": 4}  # fmt: skip


@pytest.mark.parametrize("options", [GPT2, LLAMA])
def test_more_tokens_than_positions_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    policy = create_policy(PolicyConfig(architecture=options, device="cpu"), TEXTS, 0)
    assert position_limit(policy) == 40
    policy.save(tmp_path / "model")
    for asked in (PolicyConfig(path=str(tmp_path / "model")), PolicyConfig(architecture=options)):
        check_lengths(asked, 39)
        with pytest.raises(UserError, match="too few positions"):
            check_lengths(asked, 40)


def test_ordinary_tokens_without_embeddings_are_refused_and_unused_special_ones_are_not(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    rows = model.get_input_embeddings().num_embeddings
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    for number, token in ((rows, "<image>"), (rows + 1, "<pad>")):
        added = {"id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": False}
        tokenizer["added_tokens"].append({**added, "normalized": False, "special": True})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    described(folder, "tokenizer_config.json", pad_token="<pad>")
    check_policy(PolicyConfig(path=str(folder)))
    policy = load(folder)
    assert len(policy.tokenizer) == rows + 2 and policy.template.pad_id < rows
    (folder / "chat_template.jinja").write_text(CHATML.replace("<|im_start|>", "<image>"), encoding="utf-8")
    for options in ({}, {"special_tokens_in_questions": True, "template": "plain"}):
        with pytest.raises(UserError, match="no embeddings") as refused:
            load(folder, **options)
        assert "<image>" in str(refused.value.got)
    model.resize_token_embeddings(rows - 4)
    model.save_pretrained(folder)
    for refuse in (lambda: check_policy(PolicyConfig(path=str(folder))), lambda: load(folder)):
        with pytest.raises(UserError, match="no embeddings"):
            refuse()


@pytest.mark.parametrize("config", [{"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
                                    {"quantization_config": {"quant_method": "awq", "bits": 4}},
                                    {"text_config": {"quantization_config": {"quant_method": "gptq"}}}])  # fmt: skip
def test_quantised_weights_are_refused(folder: Path, config: dict[str, Any]) -> None:
    described(folder, **config)
    method = (config.get("quantization_config") or config["text_config"]["quantization_config"])["quant_method"]
    with pytest.raises(UserError, match="quantised") as refused:
        check_policy(PolicyConfig(path=str(folder)))
    assert method in str(refused.value.got)


def test_a_model_that_came_from_a_gguf_file_has_plain_weights(folder: Path) -> None:
    before = load(folder).model.state_dict()
    described(folder, quantization_config={"quant_method": "gguf", "dequantize": False, "gguf_file": "x.gguf"})
    check_policy(PolicyConfig(path=str(folder)))
    load(folder).save(folder.parent / "saved")
    after = load(folder.parent / "saved").model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert "quantization_config" not in json.loads((folder.parent / "saved" / "config.json").read_text("utf-8"))


def test_adapters_on_embeddings_and_on_a_tied_head_are_refused(tmp_path: Path) -> None:
    tied = tmp_path / "tied"
    tiny_policy(tie_word_embeddings=True).save(tied)
    free = tmp_path / "free"
    tiny_policy().save(free)
    refused = [(tied, "lm_head"), (tied, "embed_tokens"), (free, "embed_tokens"), (tied, "model.embed_tokens")]
    for folder, target in refused:
        asked = PolicyConfig(path=str(folder), device="cpu", lora=LoraConfig(targets=["q_proj", target]))
        for refuse in (lambda asked=asked: check_policy(asked), lambda a=asked, f=folder: _checked(f, a)):
            with pytest.raises(UserError, match="cannot have an adapter") as error:
                refuse()
            assert error.value.where == "policy.lora.targets" and target in error.value.what
    asked = PolicyConfig(path=str(free), device="cpu", lora=LoraConfig(targets=["q_proj", "lm_head"]))
    check_policy(asked)
    _checked(free, asked)
    policy = load_policy(free, asked)
    assert asked.lora is not None
    policy.adapters = add_adapters(policy.model, asked.lora, 0)
    head: Any = policy.model.get_output_embeddings()
    torch.nn.init.ones_(head.lora_B["default"].weight)
    logits = policy.model(torch.tensor([[5, 6]])).logits
    policy.save(tmp_path / "merged")
    torch.testing.assert_close(load(tmp_path / "merged").model(torch.tensor([[5, 6]])).logits, logits)


def _checked(folder: Path, asked: PolicyConfig) -> None:
    check_adapters(load_policy(folder, asked).model.config, asked)


def test_an_architecture_leaves_to_the_tokenizer_what_it_decides() -> None:
    for option in ("vocab_size", "eos_token_id"):
        with pytest.raises(UserError) as refused:
            check_policy(PolicyConfig(architecture={"model_type": "llama", option: 7}))
        assert refused.value.where == f"policy.architecture.{option}"
