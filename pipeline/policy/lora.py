"""Low-rank adapters, by peft: a stage trains small matrices beside the weights, which themselves stay as they are.

The adapters live inside the model, so that sampler, packing and head see the modules they know. What is handed over is
an ordinary folder with the adapters merged in, with them beside it in peft's own format; the next stage begins with
fresh ones on the merged weights. A stage that goes on takes its parent's weights and the adapters of its checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import write_json
from gradus.pipeline.config.policy import LoraConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER = "adapter"
"""Folder, in a checkpoint, of the adapters in peft's format."""
NAME = "default"


def add_adapters(model: PreTrainedModel, config: LoraConfig, seed: int) -> Any:
    """Give the model fresh adapters, which are all that trains from now on, and return peft's description of them. They
    change nothing yet: their second matrices are zero.

    Raises: UserError where no module has one of the names that are asked for.
    """
    import peft  # half a second that only those pay who use it

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
    return wanted


def merged_weight(module: Any) -> Tensor:
    """A linear layer's weight with what its adapter adds: W + (alpha / rank) B A, or just W where it has none."""
    delta = getattr(module, "get_delta_weight", None)
    return module.weight if delta is None else module.weight + delta(NAME).to(module.weight.dtype)


def is_linear(module: Any) -> bool:
    """Whether a module is a plain linear layer, with an adapter or without."""
    return type(getattr(module, "base_layer", module)) is torch.nn.Linear


@torch.no_grad()
def merged_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """The state of the model as if it had been trained without adapters, under the names that it then would have."""
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if ".lora_" not in name:
            state[name.replace(".base_layer.", ".")] = value
    return state | {f"{name}.weight": merged_weight(module).contiguous() for name, module in adapted.items()}


def save_adapter(model: PreTrainedModel, adapters: Any, folder: Path) -> None:
    """Write the adapters as peft loads them, on the weights that the stage began with; ``adapters`` is peft's description."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir()
    found = get_peft_model_state_dict(model, adapter_name=NAME)
    save_file({f"base_model.model.{name}": value.contiguous() for name, value in found.items()},
              folder / "adapter_model.safetensors", metadata={"format": "pt"})  # fmt: skip
    described = {k: sorted(v) if isinstance(v, set) else v for k, v in adapters.to_dict().items()}
    write_json(folder / "adapter_config.json", described)  # peft's own writes its sets in an order that changes
