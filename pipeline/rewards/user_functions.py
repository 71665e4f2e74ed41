"""Rewards from outside the package: ``package.module:function``, or a name that an installed package publishes.

A module is looked for in the configuration's folder, in the current one and in the Python environment. A configuration
is checked without running any of the user's code: the module is located, and its source is read.
"""

from __future__ import annotations

import ast
import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gradus.pipeline.common import user_code
from gradus.pipeline.common.errors import UserError, closest
from gradus.pipeline.rewards.registry import GROUP, Reward, describe_library, names

FORM = "`package.module:function`"


def reference_of(name: str, where: str = "") -> str | None:
    """``package.module:function`` of a reward from outside; None for the library's, and for an unknown name.

    Raises: UserError where several packages publish the name.
    """
    if ":" in name:
        return name
    return None if name in names() else user_code.published_reference(GROUP, name, where)


def load_function(reference: str) -> Reward:
    """Import the user's function, for use in a worker. Raises: whatever the import raises."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return Reward(reference, user_code.import_object(reference), -math.inf, math.inf, isolated=True)


def check_function(name: str, options: Mapping[str, Any], where: str = "") -> None:
    """Raise UserError where the module can't be found, or has no such function, or it can't take the options."""
    _check_signature(name, find_function(name, where), options, where)


def find_function(name: str, where: str = "") -> ast.AST | None:
    """Where the source of its module binds the function; None where the source does not show it.

    Raises: UserError where the module can't be found, or has no such function.
    """
    module, _, function = name.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), function]):
        raise UserError(f"{name!r} is not the name of a function", where=where, expected=FORM)
    spec = user_code.find_module(module)
    if spec is None:
        raise user_code.missing_module(f"the reward {name!r} can't be imported", module, FORM, where)
    if spec.origin is None or not spec.origin.endswith(".py"):
        return None  # compiled or built in: there is no source to look at
    try:
        tree = ast.parse(Path(spec.origin).read_bytes())
    except SyntaxError as error:
        at = f"{spec.origin}:{error.lineno}"
        raise UserError(f"the reward {name!r} can't be imported: {error.msg}", where=at) from None
    bound = dict(_bindings(tree.body))
    if function not in bound and not {"*", "__getattr__"} & bound.keys():
        functions = [key for key, node in bound.items() if isinstance(node, ast.FunctionDef)]
        raise UserError(
            f"{spec.origin} defines no {function!r}",
            where=where,
            expected="one of " + ", ".join(functions) if functions else FORM,
            fix=closest(function, bound),
        )
    return bound.get(function)


def source_file(name: str) -> Path | None:
    """The file of a reward from outside; None for the library's, and where there is no source."""
    reference = reference_of(name)
    return user_code.source_file(reference) if reference is not None else None


def describe() -> list[dict[str, str]]:
    """One row for each reward of the library and for each that an installed package publishes, and one for your own.

    None of the code from outside is run. A published reward that cannot be used is described by its problem.
    """
    rows = describe_library()
    for point in user_code.published(GROUP):
        reference = user_code.reference_of(point)
        row = {"name": point.name, "range": "any", "options": "", "runs": "worker"}
        row["from"] = f"{reference}, entry point of {user_code.distribution(point)}"
        try:
            if point.name in names():
                raise UserError("a reward of the library has this name", fix="publish it under another name")
            node = find_function(reference)
        except UserError as problem:
            rows.append({**row, "summary": f"cannot be used: {problem.what}"})
            continue
        if isinstance(node, ast.FunctionDef):
            row["options"] = ", ".join(argument.arg for argument in _optional(node))
        text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
        rows.append({**row, "summary": (text or "no description").partition("\n")[0].replace("``", "`")})
    own = "your own Python function (prompt, completion, **options) -> any finite number"
    row = {"name": "package.module:function", "range": "any", "options": "its own", "runs": "worker", "summary": own}
    return [*rows, row | {"from": "beside the configuration, the current folder or the Python environment"}]


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
        return  # an object made at import: only a call would show what it takes
    arguments = node.args
    positional = [a.arg for a in arguments.posonlyargs + arguments.args]
    if len(positional) < 2 and arguments.vararg is None:
        raise UserError(f"the reward {name!r} must take a prompt and a completion", where=where, expected=expected)
    named = [argument.arg for argument in _optional(node)]
    for key in options:
        if key not in named and arguments.kwarg is None:
            raise UserError(
                f"the reward {name!r} has no option {key!r}",
                where=f"{where}.params.{key}" if where else key,
                expected="one of " + ", ".join(named) if named else "no options",
                fix=closest(key, named),
            )
    without_default = positional[2 : len(positional) - len(arguments.defaults)] + [
        a.arg for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is None
    ]
    missing = [key for key in without_default if key not in options]
    if missing:
        raise UserError(f"the reward {name!r} needs the option {missing[0]!r}", where=where)


def _optional(node: ast.FunctionDef) -> list[ast.arg]:
    """The parameters after the prompt and the completion, which are the reward's options."""
    return (node.args.posonlyargs + node.args.args)[2:] + node.args.kwonlyargs
