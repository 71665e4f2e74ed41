"""Code from outside the package: ``package.module:NAME`` of the user's, and entry points that other packages publish.

A module is looked for in the folder of the configuration that was opened last, then in the current folder, in those of
earlier configurations, and in the Python environment. Finding one runs none of its code; only :func:`load` and
:func:`import_object` do.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import sys
import traceback
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradus.pipeline.common.errors import UserError, closest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

KEPT = 8
"""Folders of configurations that are remembered: one command may open several configurations and runs."""
_folders: list[str] = []
"""Folders of configurations, the last one that was opened first."""


def look_in(folder: Path | str) -> None:
    """Look for modules in this folder first, from now on: a configuration's own."""
    _folders[:] = list(dict.fromkeys([str(folder), *_folders]))[:KEPT]


def own_folders() -> list[str]:
    """Where modules are looked for before the Python environment, in this order."""
    return list(dict.fromkeys([*_folders[:1], os.getcwd(), *_folders[1:]]))


def find_module(module: str) -> ModuleSpec | None:
    """Locate a module. Unlike importlib.util.find_spec this does not import the packages around it."""
    importlib.invalidate_caches()
    first, *rest = module.split(".")
    spec = PathFinder.find_spec(first, [*own_folders(), *sys.path])
    if spec is None:
        with contextlib.suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(first)  # built in, or installed as editable
    for part in rest:
        # By its last name alone: a namespace package would look for its parent among the imported ones.
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations or [])) if spec else None
    return spec


def source_file(reference: str) -> Path | None:
    """The file of the module in ``package.module:NAME``; None where there is no source."""
    spec = find_module(reference.partition(":")[0])
    return Path(spec.origin) if spec is not None and spec.origin and spec.origin.endswith(".py") else None


def import_object(reference: str) -> Any:
    """What ``package.module:NAME`` is. Raises: whatever the module raises; ImportError, AttributeError."""
    module, _, name = reference.partition(":")
    spec, folders = find_module(module), own_folders()
    sys.path[:0] = folders
    try:
        imported = importlib.import_module(module)
    finally:
        for folder in folders:
            sys.path.remove(folder)
        # At the end, where they hide nothing: for what the module imports later.
        sys.path.extend(folder for folder in folders if folder not in sys.path)
    actual = getattr(imported, "__file__", None)
    if spec is not None and spec.has_location and actual and not Path(actual).samefile(str(spec.origin)):
        raise ImportError(f"another module called {module!r} has been imported before, from {actual}")
    return functools.reduce(getattr, name.split("."), imported)


def load(reference: str, kind: str, form: str, where: str = "") -> Any:
    """What ``package.module:NAME`` is; ``kind`` and ``form`` describe in messages what is expected of it.

    Raises: UserError where the module or the name is missing, or the module cannot be imported.
    """
    module, _, name = reference.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), *name.split(".")]):
        raise UserError(f"{reference!r} is not the name of a {kind}", where=where, got=reference, expected=form)
    what = f"the {kind} `{reference}` cannot be imported"
    if find_module(module) is None:
        raise missing_module(what, module, form, where)
    try:
        return import_object(reference)
    except KeyboardInterrupt:
        raise
    except AttributeError as error:
        if module in sys.modules and error.obj is sys.modules[module]:
            known = [key for key in vars(error.obj) if not key.startswith("_")]
            fix = closest(name, known) or f"define `{name}` there, or correct the name"
            file = getattr(error.obj, "__file__", module)
            raise UserError(f"{file} defines no `{name}`", where=where, got=reference, expected=form, fix=fix) from None
        raise _import_error(what, module, error, where) from error
    except BaseException as error:
        raise _import_error(what, module, error, where) from error


def missing_module(what: str, module: str, form: str, where: str) -> UserError:
    """The message for a module that is in none of the places where it is looked for."""
    return UserError(
        f"{what}: there is no module {module!r}",
        where=where,
        got=module,
        expected=f"{form}, importable from {' or '.join(own_folders()[:2])} or the Python environment",
        fix="correct the name, put the module beside the configuration, or start from the folder that holds it",
    )


def _import_error(what: str, module: str, error: BaseException, where: str) -> UserError:
    """The message for a module whose own code fails, with the line at which it does."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames and frames[-1].filename != __file__ else ""
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{error.filename}:{error.lineno}"
    said = f"{type(error).__name__}: {error}".strip(": ")
    return UserError(
        what,
        where=where,
        got=f"{said} ({place})" if place else said,
        expected="a module that can be imported",
        fix=f"correct it; `python -c 'import {module}'` in its folder shows the whole error",
    )


def published(group: str) -> list[EntryPoint]:
    """The entry points of a group that installed packages have. Nothing is imported."""
    return _published(group, tuple(sys.path))


@functools.lru_cache(maxsize=4)
def _published(group: str, path: tuple[str, ...]) -> list[EntryPoint]:
    from importlib.metadata import entry_points

    distinct = {(point.name, point.value): point for point in entry_points(group=group)}
    return sorted(distinct.values(), key=lambda point: (point.name, point.value))


def published_reference(group: str, name: str, where: str = "") -> str | None:
    """``package.module:NAME`` of the entry point of this name; None where there is none.

    Raises: UserError where several packages publish the name.
    """
    found = [point for point in published(group) if point.name == name]
    if len(found) > 1:
        raise UserError(
            f"several packages publish `{name}` in {group}",
            where=where,
            got=", ".join(f"{point.value} of {distribution(point)}" for point in found),
            expected="one",
            fix=f"write the one that you mean out, such as `{reference_of(found[0])}`, or uninstall the others",
        )
    return reference_of(found[0]) if found else None


def reference_of(point: EntryPoint) -> str:
    """``package.module:NAME`` of an entry point."""
    return f"{point.module}:{point.attr}"


def distribution(point: EntryPoint) -> str:
    """Name and version of the package that publishes an entry point."""
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "an unknown package"
