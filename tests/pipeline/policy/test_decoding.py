"""The text of a completion: all that was written, and nothing that only begins, ends or pads it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tiny_policies import TEXTS, tiny_policy
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gradus.pipeline.policy.policy import Policy
from gradus.pipeline.rewards.library import exact_answer
from gradus.pipeline.types import Prompt

TAGS = ["<answer>", "</answer>", "<think>", "</think>"]


def with_tags(special: bool) -> Policy:
    """A policy whose tokenizer has a token for each tag, and an end token of the same kind."""
    made = tiny_policy()
    made.tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text in [*TAGS, "<|im_end|>"]])
    end = made.tokenizer.convert_tokens_to_ids("<|im_end|>")
    return Policy(made.model, made.tokenizer, replace(made.template, eos_ids=(end, *made.template.eos_ids)))


def in_pieces() -> Any:
    """A tokenizer that marks the beginning of words, as those of Llama 2 and Gemma do."""
    model = Tokenizer(models.BPE(unk_token="<unk>"))
    model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    model.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    model.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    kinds = ["<unk>", "<s>", "</s>"]
    model.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=200, special_tokens=kinds))
    return PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("special", [True, False])
def test_tags_are_text_and_the_end_token_is_not(special: bool) -> None:
    policy, text = with_tags(special), "<think>7*8=56</think><answer>56</answer>"
    tokens = policy.encode_completion(text)
    assert tokens[-1] == policy.template.eos_ids[0] and len(tokens) < len(text), "tags are single tokens"
    assert policy.decode(tokens) == text and exact_answer(Prompt("p", "7 * 8 =", "56"), policy.decode(tokens)) == 1
    for end in policy.template.eos_ids:
        assert policy.decode([*tokens[:-1], end]) == text
    padding, begin = policy.template.pad_id, policy.tokenizer.bos_token_id
    assert policy.decode([begin or padding, *tokens, padding, padding]) == text


@pytest.mark.parametrize("tokenizer", [None, in_pieces()], ids=["bytes", "pieces"])
def test_texts_without_special_tokens_are_what_they_were(tokenizer: Any) -> None:
    policy = tiny_policy()
    if tokenizer is not None:
        template = replace(policy.template, eos_ids=(tokenizer.eos_token_id,), pad_id=tokenizer.eos_token_id)
        policy = Policy(policy.model, tokenizer, template)
    for text in [*TEXTS, " 12", "12  + 34 ", ""]:
        tokens = policy.encode_completion(text)
        for some in (tokens, tokens[1:], [*tokens, *tokens[:1]]):
            earlier = policy.tokenizer.decode(some, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            assert policy.decode(some) == earlier


def test_what_the_tokenizer_does_not_know_stays_visible() -> None:
    """Dropped, an unknown token between 3 and 4 would make 34 of them."""
    tokenizer, made = in_pieces(), tiny_policy()
    end = tokenizer.eos_token_id
    policy = Policy(made.model, tokenizer, replace(made.template, eos_ids=(end,), pad_id=end))
    three, four = (policy.encode_completion(text)[:-1] for text in ("3", "4"))
    assert policy.decode([*three, tokenizer.unk_token_id, *four]).replace(" ", "") == "3<unk>4"
