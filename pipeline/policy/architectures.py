"""The architectures that transformers supports, parsed from its source code: importing it takes two seconds, and torch.

Where the source has another form than expected, the answer is empty, and the caller must then accept everything.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any


def causal_model_types() -> set[str]:
    """Model types that AutoModelForCausalLM accepts."""
    for node in _module("models", "auto", "modeling_auto.py").body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if any(isinstance(t, ast.Name) and t.id == "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES" for t in targets):
            pairs = [n.elts[0] for n in ast.walk(node) if isinstance(n, ast.Tuple) and len(n.elts) == 2]
            return {p.value for p in pairs if isinstance(p, ast.Constant) and isinstance(p.value, str)}
    return set()


def architecture_options(model_type: str) -> set[str]:
    """Options of the configuration class of a model type, its aliases and the options of all models included."""
    folder = model_type.replace("-", "_")
    for node in _module("models", folder, f"configuration_{folder}.py").body:
        if isinstance(node, ast.ClassDef) and _constants(node, "model_type") == [model_type]:
            bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
            common = {name for c in _classes("configuration_utils.py") if c.name in bases for name in _declared(c)}
            # Where the class inherits from that of another model, not all options are known: the answer is empty.
            return common | _declared(node) | set(_constants(node, "attribute_map")) if common else set()
    return set()


def architecture_defaults(model_type: str) -> tuple[dict[str, Any], dict[str, str]]:
    """(option -> plain default, another name of an option -> the option) of a model type's configuration class.

    Where the class has another name for an option (``n_embd``), the usual name (``hidden_size``) is included too.
    """
    folder = model_type.replace("-", "_").removesuffix("_text")  # the text part of a model that also takes images
    for node in _module("models", folder, f"configuration_{folder}.py").body:
        if isinstance(node, ast.ClassDef) and _constants(node, "model_type") == [model_type]:
            fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
            values = {n.target.id: n.value for n in fields if isinstance(n.target, ast.Name)}
            found = {name: v.value for name, v in values.items() if isinstance(v, ast.Constant)}
            own = _mapping(node, "attribute_map")
            found |= {usual: found[name] for usual, name in own.items() if name in found}
            return found, {name: usual for usual, name in own.items()}
    return {}, {}


def text_options(described: dict[str, Any]) -> dict[str, Any]:
    """The options of the text model that a ``config.json`` or ``policy.architecture`` describes, by their usual names.

    Those that it does not mention have the defaults of the model type, as far as these are plain values.
    """
    text = described.get("text_config")
    options = text if isinstance(text, dict) else described
    defaults, names = architecture_defaults(str(options.get("model_type", "")))
    return defaults | {names.get(name, name): value for name, value in options.items()}


def layer_count(described: dict[str, Any]) -> int | None:
    """The number of layers of the text model that options or a ``config.json`` describe; None where it is not known."""
    return _whole(text_options(described).get("num_hidden_layers"))


def position_count(described: dict[str, Any]) -> int | None:
    """How many tokens a text model takes; None where it is not known, or the model has no such limit."""
    return _whole(text_options(described).get("max_position_embeddings"))


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None


def tied_layers(model_type: str) -> list[tuple[str, str]]:
    """(head, embeddings) of each class of a model type, by the names of the layers that may share their weights."""
    folder = model_type.replace("-", "_").removesuffix("_text")
    found = list[tuple[str, str]]()
    for node in _module("models", folder, f"modeling_{folder}.py").body:
        if isinstance(node, ast.ClassDef):
            found += [
                (_layer(head), _layer(embeddings)) for head, embeddings in _mapping(node, "_tied_weights_keys").items()
            ]
    return found


def _layer(weight: str) -> str:
    """The name of the layer that a weight belongs to: ``lm_head`` of ``lm_head.weight``."""
    return weight.removesuffix(".weight").rpartition(".")[2]


def _module(*parts: str) -> ast.Module:
    """A source file of the installed transformers, parsed; an empty module where there is none."""
    found = importlib.util.find_spec("transformers")
    for folder in (found.submodule_search_locations or []) if found else []:
        try:
            return ast.parse(Path(folder, *parts).read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError):
            continue
    return ast.Module([], [])


def _classes(file: str) -> list[ast.ClassDef]:
    return [node for node in _module(file).body if isinstance(node, ast.ClassDef)]


def _declared(node: ast.ClassDef) -> set[str]:
    """Names of a class's annotated fields."""
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and "ClassVar" not in ast.unparse(n.annotation)]
    return {n.target.id for n in fields if isinstance(n.target, ast.Name)}


def _constants(node: ast.ClassDef, name: str) -> list[str]:
    """The text, or the mapping's keys, that a class assigns to ``name``."""
    for n in node.body:
        if isinstance(n, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in n.targets):
            values = n.value.keys if isinstance(n.value, ast.Dict) else [n.value]
            return [v.value for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)]
    return []


def _mapping(node: ast.ClassDef, name: str) -> dict[str, str]:
    """The mapping of texts that a class assigns to ``name``."""
    for n in node.body:
        if isinstance(n, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in n.targets):
            pairs = zip(n.value.keys, n.value.values, strict=True) if isinstance(n.value, ast.Dict) else ()
            known = (
                (k.value, v.value) for k, v in pairs if isinstance(k, ast.Constant) and isinstance(v, ast.Constant)
            )
            return {str(key): str(value) for key, value in known}
    return {}
