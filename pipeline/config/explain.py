"""Messages for mistakes in a configuration: pydantic's findings with file, line and key, in the user's terms."""

from __future__ import annotations

import json
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from gradus.pipeline.common.errors import UserError, closest, did_you_mean
from gradus.pipeline.common.yaml_text import Document, Path
from gradus.pipeline.config.options import Options, fields_of
from gradus.pipeline.config.outside import FORM, published_names

_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a group of options (`key: value` lines)",
    "model_type": "a group of options (`key: value` lines)",
    "model_attributes_type": "a group of options (`key: value` lines)",
    "literal_error": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "string_pattern_mismatch": "at most 64 letters, digits, dots, dashes and underscores, a letter or digit first",
    "string_too_short": "a text that is not empty",
}


@dataclass(frozen=True)
class Origin:
    """The places that the values of a configuration come from."""

    file: str
    document: Document
    overridden: dict[Path, str]
    """Path of a value -> the ``--set`` that gave it."""

    def where(self, path: Path) -> str:
        """File, line and key of the value at this path, or of the nearest thing around it."""
        for length in range(len(path), -1, -1):
            given = [text for key, text in self.overridden.items() if key[:length] == path[:length] and length]
            if given and (path[:length] in self.overridden or path[:length] not in self.document.lines):
                return f"--set {given[-1]}"
            if path[:length] in self.document.lines:
                line = f"{self.file} line {self.document.lines[path[:length]]}"
                return f"{line}, {self.key(path)}" if path else line
        return self.file

    def line(self, path: Path) -> int:
        """The line of the value at this path, or of the nearest thing around it."""
        return next(
            (self.document.lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.document.lines), 0
        )

    def key(self, path: Path) -> str:
        """The dotted key that ``--set`` would use; stages and rewards go by their label."""
        parts, current = [], self.document.data
        for part in path:
            current = step_into(current, part)
            label = label_of(current) if len(parts) == 1 and parts[0] in ("stages", "rewards") else None
            parts.append(str(label or part))
        return ".".join(parts)


def step_into(data: Any, part: str | int) -> Any:
    """The value one step down a path, None where there is none."""
    if isinstance(data, dict):
        return data.get(part)
    return data[part] if isinstance(data, list) and isinstance(part, int) and part < len(data) else None


def label_of(entry: Any) -> str | None:
    """The label of a raw entry of ``stages`` or ``rewards`` that has been given its name where it repeats."""
    if not isinstance(entry, dict):
        return None
    label = entry.get("name") or entry.get("stage") or entry.get("reward")
    return label.rpartition(":")[2] if isinstance(label, str) and label else None


def combined(problems: Sequence[UserError], file: str) -> UserError:
    """Several problems as one message."""
    if len(problems) == 1:
        return problems[0]
    texts = "\n\n".join(f"{n}. {problem.render()}" for n, problem in enumerate(problems, 1))
    return UserError(f"{len(problems)} problems in {file}\n\n{texts}")


def explain(error: ValidationError, data: Any, model: type[BaseModel], origin: Origin) -> UserError:
    """All findings of one validation as one message, in the order of the file."""
    grouped: dict[tuple[Path, str], list[Any]] = {}
    for finding in error.errors(include_url=False):
        path = _real_path(finding["loc"], data)
        kind = "structure" if finding["type"] in _EXPECTED else str((finding["type"], finding["loc"]))
        grouped.setdefault((path, kind), []).append(finding)
    ordered = sorted(grouped.items(), key=lambda group: origin.line(group[0][0]))
    return combined([_explain_one(path, found, data, model, origin) for (path, _), found in ordered], origin.file)


def _real_path(location: tuple[str | int, ...], data: Any) -> Path:
    """pydantic's location without the names of union members that it slips in between."""
    path: list[str | int] = []
    current = data
    for i, part in enumerate(location):
        last = i == len(location) - 1
        if isinstance(current, dict):
            is_tag = part not in current and part in (current.get("stage"), current.get("source"), "own", "shares")
            if is_tag or (part not in current and not last):
                continue
        elif not (isinstance(current, list) and isinstance(part, int)):
            continue
        path.append(part)
        current = step_into(current, part)
    return tuple(path)


def _explain_one(path: Path, found: list[Any], data: Any, model: type[BaseModel], origin: Origin) -> UserError:
    finding, kind, context = found[0], found[0]["type"], found[0].get("ctx") or {}
    where, got, name = origin.where(path), show(finding["input"]), _name(path)
    if kind == "extra_forbidden":
        known = options_at(path[:-1], data, model)
        fix = did_you_mean(name, fields_of(known)) if known else "remove it"
        fix = getattr(known, "replaced", {}).get(name, fix)
        return UserError(f"unknown option `{name}`", where=where, got=got, fix=fix)
    if kind == "missing":
        return UserError(f"`{name}` is missing", where=where, expected=_meaning(path, data, model), fix="add it")
    if kind == "union_tag_invalid":
        word, tags = str(context["tag"]), str(context["expected_tags"]).replace("'", "").split(", ")
        what = context["discriminator"].strip("'")
        expected, fix = _one_of(tags), did_you_mean(word, tags)
        if what == "stage":
            tags = list(dict.fromkeys([*tags, *published_names()]))
            expected, fix = f"{_one_of(tags)}, or one of your own as {FORM}", did_you_mean(word, tags)
        return UserError(f"unknown {what} `{word}`", where=where, expected=expected, fix=fix)
    if kind == "union_tag_not_found":
        tag = context["discriminator"].strip("'")
        return UserError(
            f"`{name}` does not say which {tag} it is", where=where, got=got, fix=f"add `{tag}: ...` to it"
        )
    if kind == "value_error":
        return UserError(finding["msg"].removeprefix("Value error, "), where=where)
    if kind in ("too_short", "too_long"):
        bound = context.get("min_length", context.get("max_length"))
        expected = f"{'at least' if kind == 'too_short' else 'at most'} {bound}"
        return UserError(f"`{name}` has the wrong number of entries", where=where, got=got, expected=expected)
    if kind == "literal_error":
        choices = list(dict.fromkeys(choice for each in found for choice in _choices(each)))
        fix = closest(str(finding["input"]), choices) or _default(path, data, model)
        return UserError(
            f"`{name}` has a value it cannot have", where=where, got=got, expected=_one_of(choices), fix=fix
        )
    if kind not in _EXPECTED:
        return UserError(f"`{name}`: {finding['msg'][:1].lower()}{finding['msg'][1:]}", where=where, got=got)
    expected = " or ".join(dict.fromkeys(_EXPECTED[each["type"]].format(**(each.get("ctx") or {})) for each in found))
    if kind == "finite_number":
        expected += _bounds(_field(path, data, model))
    meaning = _meaning(path, data, model)
    expected = f"{expected} ({meaning.rstrip('.')})" if meaning else expected
    fix = _default(path, data, model)
    return UserError(f"`{name}` has a value it cannot have", where=where, got=got, expected=expected, fix=fix)


def _name(path: Path) -> str:
    """The last part of a path; an entry of a list goes with the list's name."""
    return f"{path[-2]}.{path[-1]}" if len(path) > 1 and isinstance(path[-1], int) else str(path[-1]) if path else "it"


def _choices(finding: Any) -> list[str]:
    expected = str(finding["ctx"]["expected"]) if finding["type"] == "literal_error" else ""
    return [choice.strip("'") for choice in expected.replace(" or ", ", ").split(", ") if choice]


def _one_of(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else "one of " + ", ".join(words)


def show(value: Any) -> str:
    """A value on one short line."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 90 else f"{text[:87]}..."


def options_at(path: Path, data: Any, model: type[BaseModel]) -> type[BaseModel] | None:
    """The option class of the group of options at this path, None where anything goes (such as ``params``)."""
    current, classes, named = data, [model], False
    for part in path:
        if not isinstance(part, int) and not named:  # else an entry of a list or of named groups, of the same classes
            field = fields_of(_tagged(classes, current)).get(part)
            classes = _option_classes(field.annotation) if field else []
            if not classes:
                return None
            named = field is not None and _has_names(field.annotation)
        else:
            named = False
        current = step_into(current, part)
    return _tagged(classes, current)


def _tagged(classes: list[type[BaseModel]], entry: Any) -> type[BaseModel]:
    """The member of a union that the raw data name."""
    for options in classes if isinstance(entry, dict) else ():
        fields = options.model_fields
        tags = {name: fields[name].annotation for name in ("stage", "source") if name in fields}
        if any(entry.get(name) in typing.get_args(annotation) for name, annotation in tags.items()):
            return options
    return classes[0]


def _has_names(annotation: Any) -> bool:
    """Whether it has groups of options under names that the user gives."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is dict and _option_classes(arguments[1]):
        return True
    return any(_has_names(argument) for argument in arguments)


def _option_classes(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, Options):
        return [annotation]
    return [found for argument in typing.get_args(annotation) for found in _option_classes(argument)]


def _field(path: Path, data: Any, model: type[BaseModel]) -> FieldInfo | None:
    options = options_at(path[:-1], data, model) if path else None
    return fields_of(options).get(str(path[-1])) if options else None


def _meaning(path: Path, data: Any, model: type[BaseModel]) -> str:
    """The first line of an option's own documentation."""
    field = _field(path, data, model)
    return (field.description or "").split("\n")[0] if field else ""


def _bounds(field: FieldInfo | None) -> str:
    """The bounds of a number, such as `` >= 0 and <= 1``."""
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    known = [
        (sign, getattr(each, name, None)) for each in (field.metadata if field else ()) for name, sign in signs.items()
    ]
    return " and".join(f" {sign} {bound}" for sign, bound in known if bound is not None)


def _default(path: Path, data: Any, model: type[BaseModel]) -> str:
    """What happens without the option, where it may be left out."""
    field = _field(path, data, model)
    if field is None or field.is_required():
        return "correct it"
    value = field.get_default(call_default_factory=True)
    plain = isinstance(value, (bool, int, float, str, list, tuple, dict))
    return (
        f"correct it, or leave it out for the default, {json.dumps(value)}" if plain else "correct it, or leave it out"
    )
