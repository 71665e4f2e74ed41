"""Rewards of the user's own: ``package.module:function``, imported from the current directory or the environment.

A configuration is checked without running any of the user's code: the module is located on the path, its source read.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import math
import os
import sys
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.rewards.registry import Reward, did_you_mean

FORM = "`package.module:function`"


def load_function(name: str) -> Reward:
    """Import the user's function, for use in a worker. Raises: whatever the import raises."""
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return Reward(name, getattr(importlib.import_module(module), function), -math.inf, math.inf, isolated=True)


def check_function(name: str, options: Mapping[str, Any], where: str = "") -> None:
    """Raise UserError where the module can't be found, or has no such function, or it can't take the options."""
    module, _, function = name.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), function]):
        raise UserError(f"{name!r} is not the name of a function", where=where, expected=FORM)
    spec = _find_module(module)
    if spec is None:
        raise UserError(
            f"the reward {name!r} can't be imported: there is no module {module!r}",
            where=where,
            expected=f"{FORM}, importable from {os.getcwd()} or the Python environment",
            fix="correct the name, or start from the directory that holds the module",
        )
    if spec.origin is None or not spec.origin.endswith(".py"):
        return  # compiled or built in: there is no source to look at
    try:
        tree = ast.parse(Path(spec.origin).read_bytes())
    except SyntaxError as error:
        at = f"{spec.origin}:{error.lineno}"
        raise UserError(f"the reward {name!r} can't be imported: {error.msg}", where=at) from None
    bound = dict(_bindings(tree.body))
    if function not in bound and not {"*", "__getattr__"} & bound.keys():
        functions = [key for key, node in bound.items() if isinstance(node, ast.FunctionDef)]
        raise UserError(
            f"{spec.origin} defines no {function!r}" + did_you_mean(function, list(bound)),
            where=where,
            expected="one of " + ", ".join(functions) if functions else FORM,
        )
    _check_signature(name, bound.get(function), options, where)


def _find_module(module: str) -> ModuleSpec | None:
    """Locate a module; unlike importlib.util.find_spec this doesn't import the packages around it."""
    first, *rest = module.split(".")
    # The second look finds what is built in or installed as editable.
    spec = PathFinder.find_spec(first, [os.getcwd(), *sys.path]) or importlib.util.find_spec(first)
    for part in rest:
        # By its last name alone: a namespace package would look for its parent among the imported ones.
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations or [])) if spec else None
    return spec


def source_file(name: str) -> Path | None:
    """The file of a reward of the user's own; None for the library's, and where there is no source."""
    spec = _find_module(name.partition(":")[0]) if ":" in name else None
    return Path(spec.origin) if spec is not None and spec.origin and spec.origin.endswith(".py") else None


def _bindings(body: list[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    """(name, where it is bound) for every name that a module's top level may bind; ``*`` for a star import."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                yield (alias.asname or alias.name).partition(".")[0], node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((n.id, node) for t in targets for n in ast.walk(t) if isinstance(n, ast.Name))
        else:
            for inner in ("body", "orelse", "finalbody"):
                yield from _bindings(getattr(node, inner, []))
            for handler in getattr(node, "handlers", []):
                yield from _bindings(handler.body)


def _check_signature(name: str, node: ast.AST | None, options: Mapping[str, Any], where: str) -> None:
    expected = "def function(prompt, completion, **options) -> float"
    constant = isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    if constant or isinstance(node, ast.AsyncFunctionDef):
        raise UserError(f"the reward {name!r} is not a plain function", where=where, expected=expected)
    if not isinstance(node, ast.FunctionDef) or node.decorator_list:
        return  # an object made at import: only calling it would tell
    arguments = node.args
    positional = [a.arg for a in arguments.posonlyargs + arguments.args]
    if len(positional) < 2 and arguments.vararg is None:
        raise UserError(f"the reward {name!r} must take a prompt and a completion", where=where, expected=expected)
    named = positional[2:] + [a.arg for a in arguments.kwonlyargs]
    for key in options:
        if key not in named and arguments.kwarg is None:
            raise UserError(
                f"the reward {name!r} has no option {key!r}" + did_you_mean(key, named),
                where=f"{where}.params.{key}" if where else key,
                expected="one of " + ", ".join(named) if named else "no options",
            )
    without_default = positional[2 : len(positional) - len(arguments.defaults)] + [
        a.arg for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is None
    ]
    missing = [key for key in without_default if key not in options]
    if missing:
        raise UserError(f"the reward {name!r} needs the option {missing[0]!r}", where=where)
