"""Low-rank adapters (LoRA) by peft: a stage trains small matrices beside the weights, which remain frozen.

The adapters are inserted into the model's own modules, so sampler, packing and head need not know about them. A
checkpoint is an ordinary model folder with the adapters merged into the weights, and contains the adapters in peft's
format as well. The next stage starts with new adapters on the merged weights. A stage that is resumed loads its
parent's weights and the adapters of its checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import write_json
from gradus.pipeline.config.policy import LoraConfig, PolicyConfig
from gradus.pipeline.policy.checks import no_adapter

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

ADAPTER = "adapter"
"""Folder of the adapters, in peft's format, inside a checkpoint."""
NAME = "default"
"""peft's name of the adapters."""


def add_adapters(model: PreTrainedModel, config: LoraConfig, seed: int) -> Any:
    """Insert new adapters into the model, freeze everything else, and return peft's description of the adapters.

    New adapters do not change the model's output: their second matrices are zero.
    Raises: UserError where no module has one of the configured names.
    """
    import peft  # takes half a second

    targets = "all-linear" if config.targets == "auto" else list(config.targets)
    wanted = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets, bias="none")
    torch.manual_seed(seed)
    try:
        peft.inject_adapter_in_model(wanted, model)
    except ValueError as error:
        linear = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
        raise UserError(
            "the adapters fit nowhere in the model",
            where="policy.lora.targets",
            got=str(config.targets),
            expected=f"`auto`, or names of its linear layers: {', '.join(sorted(linear))}",
            fix=str(error).splitlines()[0],
        ) from None
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    for name, module in model.named_modules():
        layer = getattr(module, "base_layer", None)
        if isinstance(layer, torch.nn.Embedding) or (module is head and layer is not None and _tied(layer, embeddings)):
            raise no_adapter(name, str(config.targets))
    return wanted


def _tied(head: Any, embeddings: Any) -> bool:
    return head.weight is getattr(embeddings, "weight", None)


def check_adapters(described: PretrainedConfig, config: PolicyConfig) -> None:
    """The adapters fit into a model of this description, of which nothing is allocated. Raises: UserError."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(described, trust_remote_code=config.trust_remote_code)
        if config.lora is not None:
            add_adapters(model, config.lora, seed=0)


def merged_weight(module: Any) -> Tensor:
    """A linear layer's weight including its adapter, W + (alpha / rank) B A; W where it has none."""
    delta = getattr(module, "get_delta_weight", None)
    return module.weight if delta is None else module.weight + delta(NAME).to(module.weight.dtype)


def is_linear(module: Any) -> bool:
    """Whether a module is a plain linear layer, with an adapter or without."""
    return type(getattr(module, "base_layer", module)) is torch.nn.Linear


@torch.no_grad()
def merged_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """The model's state with merged adapters, under the names of a model without adapters."""
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if ".lora_" not in name:
            state[name.replace(".base_layer.", ".")] = value
    return state | {f"{name}.weight": merged_weight(module).contiguous() for name, module in adapted.items()}


def save_adapter(model: PreTrainedModel, adapters: Any, folder: Path) -> None:
    """Write the adapters so that peft can load them on the stage's starting weights.

    ``adapters`` is peft's description, which :func:`add_adapters` returned.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir()
    found = get_peft_model_state_dict(model, adapter_name=NAME)
    save_file({f"base_model.model.{name}": value.contiguous() for name, value in found.items()},
              folder / "adapter_model.safetensors", metadata={"format": "pt"})  # fmt: skip
    described = {k: sorted(v) if isinstance(v, set) else v for k, v in adapters.to_dict().items()}
    write_json(folder / "adapter_config.json", described)  # peft writes sets in a random order
