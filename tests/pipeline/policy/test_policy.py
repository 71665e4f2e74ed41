"""Policies are created, saved and loaded; template, end and padding are chosen once and saved with them."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_policies import TEXTS, tiny_policy
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PolicyConfig
from gradus.pipeline.config.policy import TokenizerConfig
from gradus.pipeline.policy.creation import create_policy, train_tokenizer
from gradus.pipeline.policy.forward.padded import left_pad
from gradus.pipeline.policy.loading import load_policy

CHAT = (
    "{% for m in messages %}Calculate {{ m['content'] }};{% endfor %}{% if add_generation_prompt %} answer:{% endif %}"
)


def test_digits_are_tokens_and_text_survives():
    tokenizer = train_tokenizer(TEXTS, TokenizerConfig(vocabulary=300))
    for text in [*TEXTS, "12=46; Calculate: 8*5"]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        pieces = [tokenizer.decode([i]) for i in ids]
        assert all(len(piece.strip()) == 1 for piece in pieces if any(c.isdigit() or c in "+-*=;:" for c in piece))
    assert len(tokenizer("Calculate")["input_ids"]) < len("Calculate")
    assert len(tokenizer) < 80, "no symbols that the text never shows"
    assert tokenizer.unk_token_id in tokenizer("漢 Calculate")["input_ids"]


def test_the_seed_decides_the_weights_and_leaves_global_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = tiny_policy(1), tiny_policy(1), tiny_policy(2)
    assert torch.equal(torch.rand(3), expected)
    weights = [p.model.get_input_embeddings().weight for p in (one, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_saved_policies_are_ordinary_hugging_face_folders(policy, tmp_path):
    policy.save(tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = torch.tensor([policy.encode_prompt("1 + 2 =")])
    assert tokenizer("1 + 2 =\n")["input_ids"] == ids[0].tolist()
    assert torch.equal(model(ids).logits, policy.model(ids).logits)
    assert not list(tmp_path.glob("*.bin")) and list(tmp_path.glob("*.safetensors"))
    again = load_policy(tmp_path, PolicyConfig(path=str(tmp_path)))
    assert again.template == policy.template and again.template.digest == policy.template.digest


def save_foreign(policy, folder, chat_template=None):
    """A folder as another library writes it: without our template file."""
    policy.tokenizer.chat_template = chat_template
    policy.save(folder)
    (folder / "template.json").unlink()
    return folder


def test_chat_template_is_used_where_there_is_one(policy, tmp_path):
    folder = save_foreign(policy, tmp_path, CHAT)
    chat = load_policy(folder, PolicyConfig(path=str(folder)))
    assert chat.template.kind == "chat"
    assert chat.tokenizer.decode(chat.encode_prompt("1 + 2 =")) == "Calculate 1 + 2 =; answer:"
    plain = load_policy(
        folder, PolicyConfig(path=str(folder), template="plain", plain_template="Calculate: {question}\n")
    )
    assert plain.tokenizer.decode(plain.encode_prompt("1 + 2 =")) == "Calculate: 1 + 2 =\n"
    assert chat.template.digest != plain.template.digest


def test_a_saved_template_outlives_other_options(policy, tmp_path):
    policy.save(tmp_path)
    again = load_policy(tmp_path, PolicyConfig(path=str(tmp_path), plain_template="other {question}"))
    assert again.template == policy.template


def test_chat_asked_for_but_missing(policy, tmp_path):
    folder = save_foreign(policy, tmp_path)
    with pytest.raises(UserError, match="no chat template"):
        load_policy(folder, PolicyConfig(path=str(folder), template="chat"))


def test_several_end_tokens_and_a_missing_padding_token(policy, tmp_path):
    folder = save_foreign(policy, tmp_path)
    generation = json.loads((folder / "generation_config.json").read_text())
    generation["eos_token_id"] = [7, 1]
    (folder / "generation_config.json").write_text(json.dumps(generation))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    loaded = load_policy(folder, PolicyConfig(path=str(folder)))
    assert loaded.template.eos_ids == (1, 7), "the tokenizer's own end token comes first: training appends it"
    assert loaded.template.pad_id == 1 and loaded.model.config.pad_token_id == 1


def test_pickled_weights_are_refused(policy, tmp_path):
    policy.save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(policy.model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="no weights in safetensors form"):
        load_policy(tmp_path, PolicyConfig(path=str(tmp_path)))


@pytest.mark.parametrize(
    "architecture",
    [
        {"model_type": "no_such_model"},
        {"model_type": "llama", "hidden_size": 30, "num_attention_heads": 4},
        {"model_type": "bert_japanese"},
        {"model_type": "llama", "hidden_sise": 32},
    ],
)
def test_an_impossible_architecture_is_the_user_s_error(architecture):
    with pytest.raises(UserError) as caught:
        create_policy(PolicyConfig(architecture=architecture), TEXTS, 0)
    assert caught.value.where == "policy.architecture"


def test_a_device_that_is_not_there():
    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    with pytest.raises(UserError, match="no usable cuda"):
        create_policy(
            PolicyConfig(architecture={"model_type": "gpt2", "n_embd": 8, "n_head": 2}, device="cuda"), TEXTS, 0
        )


def test_half_precision_weights():
    policy = create_policy(
        PolicyConfig(architecture={"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}, dtype="bfloat16"),
        TEXTS,
        0,
    )
    assert policy.model.dtype == torch.bfloat16


def test_left_pad():
    ids, mask = left_pad([[5], [6, 7, 8]], pad_id=0, device=torch.device("cpu"))
    assert ids.tolist() == [[0, 0, 5], [6, 7, 8]] and mask.tolist() == [[0, 0, 1], [1, 1, 1]]
