"""The packages of a checkout, what they import and how large they are; each check yields a line for each offender.

The order of the packages is the table in ``docs/architecture.md``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

HEADER = "| level | package | for | gives | must not know |"
DIRECTLY = {"flows", "gradus"}
"""Rows of the table that hold the modules that lie directly in their folder; other rows hold subfolders, too."""
OF_MLFLOW = {"pipeline.tracking.uploader", "pipeline.tracking.pages.server"}
"""The process that delivers to MLflow, and the one that shows its pages."""
MODULES_IN_A_FOLDER, MODULES_IN_PIPELINE = 15, 8
LINES_OF_A_FILE, LINES_OF_A_FUNCTION, LINES_OF_A_STAGE = 300, 60, 120
METHODS_OF_A_CLASS = 12
Function = ast.FunctionDef | ast.AsyncFunctionDef
Check = Callable[["House"], Iterator[str]]


@dataclass(frozen=True)
class Module:
    """A file, and the dotted name that it is imported by, without the leading ``gradus.``."""

    name: str
    path: Path

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text())

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    def imports(self) -> Iterator[str]:
        """Every name that is imported, wherever in the file, as an absolute dotted name."""
        package = ["gradus", *self.name.split(".")][: None if self.is_package else -1]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
                yield from (".".join(filter(None, (base, node.module, alias.name))) for alias in node.names)
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
                yield from (str(argument.value) for argument in node.args[:1] if isinstance(argument, ast.Constant))


class House:
    """All modules of a checkout and the levels of their packages."""

    def __init__(self, root: Path):
        self.root = root
        tops = ("pipeline", "stages", "flows")
        files = [(path, path.relative_to(root)) for top in tops for path in (root / top).rglob("*.py")]
        # Not those below src/gradus: they are the three folders again, as links.
        files += [(path, path.relative_to(root / "src")) for path in (root / "src" / "gradus").glob("*.py")]
        self.modules: dict[str, Module] = {}
        for path, below in sorted(files):
            name = ".".join(below.with_suffix("").parts).removesuffix(".__init__")
            self.modules[name] = Module(name, path)
        self.levels = table_of_levels(root / "docs" / "architecture.md")

    def row(self, name: str) -> str | None:
        """The package of the table that a module belongs to: the longest that matches."""
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            row = ".".join(parts[:length])
            if row in self.levels and (row not in DIRECTLY or self._lies_directly_in(row, name)):
                return row
        return None

    def _lies_directly_in(self, row: str, name: str) -> bool:
        module = self.modules[name]
        return name == row or (name.rpartition(".")[0] == row and not module.is_package)

    def uses(self, module: Module) -> set[str]:
        """The project's modules that a module imports; without ``gradus`` itself, which is loaded before any of them.

        See :func:`root_offenders`.
        """
        found = set()
        for imported in module.imports():
            name = imported.removeprefix("gradus.")
            for candidate in (name, name.rpartition(".")[0]):
                if imported.startswith("gradus.") and candidate in self.modules:
                    found.add(candidate)
                    break
        return found - {module.name}

    def shown(self, module: Module) -> str:
        return str(module.path.relative_to(self.root))


def table_of_levels(page: Path) -> dict[str, int]:
    """package -> level, as the page's table has it."""
    lines = page.read_text().splitlines()
    levels: dict[str, int] = {}
    for line in lines[lines.index(HEADER) + 2 :]:
        if not line.startswith("|"):
            break
        level, package, *rest = (cell.strip() for cell in line.strip("|").split("|"))
        assert re.fullmatch(r"`[a-z_.]+`", package) and len(rest) == 3 and all(rest), f"not a row of the table: {line}"
        assert package[1:-1] not in levels, f"a second row for {package}"
        levels[package[1:-1]] = int(level)
    return levels


def row_offenders(house: House) -> Iterator[str]:
    """Modules without a row, unless they are the ``__init__.py`` of a folder of packages; rows without modules."""
    rows = {name: house.row(name) for name in house.modules}
    for name, module in house.modules.items():
        if rows[name] is None and not (module.is_package and len(module.tree.body) == 1):
            yield f"{house.shown(module)}: no row of the table is its package"
    for row in house.levels.keys() - rows.values():
        yield f"`{row}` has a row in the table, but no modules"


def root_offenders(house: House) -> Iterator[str]:
    """``gradus/__init__.py`` is run before every other module, so it must import nothing while it is run.

    The names that it offers are imported in a function, when they are asked for, and below TYPE_CHECKING for tools.
    """
    allowed = {"__future__", "typing"}
    for node in house.modules["gradus"].tree.body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
        if names := sorted(set(names) - allowed):
            yield f"src/gradus/__init__.py imports {', '.join(names)}"


def upward_offenders(house: House) -> Iterator[str]:
    """Imports of a package that is not on a lower level; imports of what is not part of the product."""
    for module in house.modules.values():
        own = house.row(module.name)
        for name in sorted(house.uses(module)):
            other = house.row(name)
            if own and other and own != other and house.levels[other] >= house.levels[own]:
                levels = f"level {house.levels[own]} imports level {house.levels[other]}"
                yield f"{house.shown(module)} imports {name}: {own} -> {other}, {levels}"
        for name in module.imports():
            outside = name.split(".")[0] in ("tests", "benchmarks", "pipeline", "stages", "flows")
            if outside or (own != "gradus" and _public(house, name)):
                yield f"{house.shown(module)} imports {name}"


def _public(house: House, name: str) -> bool:
    """Whether it is a name that ``gradus`` offers to users, from a package that may be above."""
    root, _, rest = name.partition(".")
    return root == "gradus" and rest not in ("", "__version__") and rest.split(".")[0] not in house.modules


def circle_offenders(house: House) -> Iterator[str]:
    """Circles of files: a module from which its own imports lead back to itself (Tarjan's strong components)."""
    uses = {name: sorted(house.uses(module)) for name, module in house.modules.items()}
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []

    def visit(name: str) -> Iterator[str]:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for other in uses[name]:
            if other not in order:
                yield from visit(other)
            if other in stack:
                lowest[name] = min(lowest[name], lowest[other])
        if lowest[name] == order[name]:
            circle = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(circle) > 1:
                yield "a circle of imports: " + ", ".join(circle)

    for name in uses:
        if name not in order:
            yield from visit(name)


def size_offenders(house: House) -> Iterator[str]:
    """Folders, files, functions and classes that are too large."""
    folders: dict[Path, int] = {}
    for module in house.modules.values():
        folders[module.path.parent] = folders.get(module.path.parent, 0) + (not module.is_package)
        lines = len(module.path.read_text().splitlines())
        limit = LINES_OF_A_STAGE if module.name.startswith("stages.") else LINES_OF_A_FILE
        if lines > limit:
            yield f"{house.shown(module)} has {lines} lines, more than {limit}"
        for node in ast.walk(module.tree):
            where = f"{house.shown(module)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, Function) and (lines := (node.end_lineno or 0) - node.lineno + 1) > LINES_OF_A_FUNCTION:
                yield f"{where} {node.name}() has {lines} lines, more than {LINES_OF_A_FUNCTION}"
            if isinstance(node, ast.ClassDef):
                methods = sum(isinstance(each, Function) for each in node.body)
                if methods > METHODS_OF_A_CLASS:
                    yield f"{where} class {node.name} has {methods} methods, more than {METHODS_OF_A_CLASS}"
    for folder, count in folders.items():
        limit = MODULES_IN_PIPELINE if folder == house.root / "pipeline" else MODULES_IN_A_FOLDER
        if count > limit:
            yield f"{folder.relative_to(house.root)}/ has {count} modules, more than {limit}"


def docstring_offenders(house: House) -> Iterator[str]:
    """Folders whose ``__init__.py`` does not say what the package gives to others and what it must not know."""
    for folder in sorted({module.path.parent for module in house.modules.values()}):
        file = folder / "__init__.py"
        text = (ast.get_docstring(ast.parse(file.read_text())) or "") if file.exists() else ""
        if missing := [words for words in ("Gives:", "Must not know:") if words not in text]:
            yield f"{file.relative_to(house.root)}: its docstring has no {' and no '.join(missing)}"


def name_offenders(house: House) -> Iterator[str]:
    """Stages that know each other, algorithms that the core knows by name, back ends outside of their place."""
    words = re.compile(
        rf"\b({'|'.join(sorted(re.escape(name.removeprefix('stages.')) for name in stages_of(house)))})\b"
    )
    for module in house.modules.values():
        tops = {name.split(".")[0] for name in module.imports()}
        if "mlflow" in tops and module.name not in OF_MLFLOW:
            yield f"{house.shown(module)} imports mlflow, which only {' and '.join(sorted(OF_MLFLOW))} may"
        if "prefect" in tops and not module.name.startswith("flows."):
            yield f"{house.shown(module)} imports prefect outside of flows/"
        if module.name in stages_of(house):
            for name in sorted(house.uses(module)):
                if name.startswith("stages"):
                    yield f"{house.shown(module)} imports {name}: stages do not know each other"
        if module.name.startswith("pipeline"):
            documentation = {id(node.value) for node in ast.walk(module.tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(module.tree):
                text = node.value if isinstance(node, ast.Constant) and id(node) not in documentation else None
                if isinstance(node, ast.Constant) and isinstance(text, str) and words.search(text):
                    yield f"{house.shown(module)}:{node.lineno} names an algorithm: {text!r}"


def encoding_offenders(house: House) -> Iterator[str]:
    """Text that is read, written or exchanged with a process in whatever encoding the user's locale has."""
    for module in house.modules.values():
        withs = (node for node in ast.walk(module.tree) if isinstance(node, ast.With))
        entered = {id(item.context_expr) for node in withs for item in node.items}
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and _in_the_encoding_of_the_locale(node, id(node) in entered):
                yield f"{house.shown(module)}:{node.lineno} names no encoding: {ast.unparse(node)[:80]}"


def _in_the_encoding_of_the_locale(call: ast.Call, entered: bool) -> bool:
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    owner, _, name = ast.unparse(call.func).rpartition(".")
    if "encoding" in named or None in named or owner in ("os", "webbrowser"):
        return False
    if name in ("read_text", "write_text"):
        return bool(owner)
    if name in ("open", "fdopen"):
        given = [each.value for each in (*call.args, named.get("mode")) if isinstance(each, ast.Constant)]
        modes = [each for each in given if isinstance(each, str) and re.fullmatch("[rwxat+b]{1,3}", each)]
        is_file = bool(modes) or not owner or (entered and not call.args)
        return is_file and not any("b" in mode for mode in modes)
    return "text" in named and name in ("run", "Popen", "check_output")


def stages_of(house: House) -> list[str]:
    return [name for name in house.modules if name.startswith("stages.")]


CHECKS = [
    row_offenders, root_offenders, upward_offenders, circle_offenders, size_offenders, docstring_offenders,
    name_offenders, encoding_offenders,
]  # fmt: skip
