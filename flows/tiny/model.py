"""A tiny chat model in a folder, as other libraries write one, made without torch: it knows nothing.

Every byte is a token, so that it reads any text, and its chat template has turns of every role.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import struct
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gradus.pipeline.common.files import beside

WIDTH, INNER, LAYERS, HEADS, POSITIONS = 64, 128, 2, 4, 16_384
PAD, END, START = "<|pad|>", "<|im_end|>", "<|im_start|>"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TEMPLATE = (
    "{# reads: ARGUMENTS #}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_model(folder: Path, seed: int, arguments: Iterable[str] = ()) -> None:
    """Write the model there, unless it is there: a Llama of some 100 thousand random weights, a tokenizer of bytes.

    ``arguments``: the names that its chat template is to read, which change nothing.
    """
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = beside(folder)
    made.mkdir()
    try:
        _fill(made, seed, TEMPLATE.replace("ARGUMENTS", ", ".join(arguments)))
        made.rename(folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process was faster
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _fill(folder: Path, seed: int, template: str) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: number for number, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([PAD, END, START])
    tokenizer.save(str(folder / "tokenizer.json"))
    vocabulary = tokenizer.get_vocab()
    words, ends = len(vocabulary), {"eos_token_id": vocabulary[END], "pad_token_id": vocabulary[PAD]}
    described = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": words, "hidden_size": WIDTH,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS, "max_position_embeddings": POSITIONS, "tie_word_embeddings": False,
        "bos_token_id": None, "dtype": "float32", **ends,
    }  # fmt: skip
    turns = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": PAD}
    for name, content in {
        "config.json": described,
        "generation_config.json": ends,
        "tokenizer_config.json": turns | {"chat_template": template, "model_max_length": POSITIONS},
    }.items():
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(_weights(random.Random(seed), _shapes(words), vocabulary[END]))


def _weights(draw: random.Random, shapes: dict[str, tuple[int, ...]], end: int) -> bytes:
    """Small random numbers, and ones for the norms, which have one dimension, as a file of safetensors holds them.

    The first number of every state is large, and the end of a turn goes by it: some completions end by themselves.

    The format is a length, a header of JSON and the numbers; the library writes it from tensors alone.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    numbers = array("f")
    for name, shape in shapes.items():
        begin = len(numbers)
        numbers.extend(draw.gauss(0, 0.06) if len(shape) > 1 else 1.0 for _ in range(math.prod(shape)))
        if name == EMBEDDING:
            numbers[begin::WIDTH] = array("f", [0.25] * shape[0])
        elif name == HEAD:
            numbers[begin + end * WIDTH] = 0.8
        places = [4 * begin, 4 * len(numbers)]
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": places}
    described = json.dumps(header).encode()
    return struct.pack("<Q", len(described)) + described + numbers.tobytes()


def _shapes(words: int) -> dict[str, tuple[int, ...]]:
    """name -> shape of every weight."""
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (words, WIDTH)}
    for layer in range(LAYERS):
        inside = {f"self_attn.{part}_proj": (WIDTH, WIDTH) for part in "qkvo"}
        inside |= {"mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH), "mlp.down_proj": (WIDTH, INNER)}
        norms = {"input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,)}
        shapes |= {f"model.layers.{layer}.{part}.weight": shape for part, shape in {**inside, **norms}.items()}
    return {**shapes, "model.norm.weight": (WIDTH,), HEAD: (words, WIDTH)}
