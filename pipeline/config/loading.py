"""Configurations from a YAML file or from Python: override single options, check the whole, write it back."""

from __future__ import annotations

import copy
import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from gradus.pipeline.common import user_code, yaml_text
from gradus.pipeline.common.addresses import refuse_secret, tracking_with_environment
from gradus.pipeline.common.errors import UserError, did_you_mean
from gradus.pipeline.config import explain
from gradus.pipeline.config.coerced import Numbers, refuse_coerced, unknown
from gradus.pipeline.config.explain import Origin, label_of, show
from gradus.pipeline.config.outside import published_names
from gradus.pipeline.config.pipeline import PipelineConfig, StageConfig, model_for, pipeline_model
from gradus.pipeline.config.task import FileTask, HubTask
from gradus.pipeline.config.training.objective import PREVIOUS, START

PACKAGED = Path(__file__).parents[2] / "configs"
"""Folder of the configurations that are installed with the package."""
IN_PYTHON = "<configuration>"
"""The name, in messages and records, of the file of a configuration that was made in Python."""


@dataclass(frozen=True)
class LoadedConfig:
    """A checked configuration and the file it came from."""

    config: PipelineConfig
    path: Path
    """The file that was read, absolute; ``<configuration>`` in the current folder, where it was made in Python."""
    base_dir: Path
    """The folder that the file's relative paths start from; in ``config`` they are absolute already."""


def packaged_configs() -> dict[str, Path]:
    """The configurations that come with the product, by name: ``quickstart``, or ``recipes/deepscaler``."""
    found = {path.relative_to(PACKAGED).with_suffix("").as_posix(): path for path in PACKAGED.rglob("*.yaml")}
    return dict(sorted(found.items()))


def find_config(source: str) -> Path:
    """The file that ``source`` means: a path, or the name of a packaged configuration. Raises: UserError."""
    path = Path(source).expanduser()
    if path.is_file():
        return path.resolve()
    known = packaged_configs()
    if source in known:
        return known[source]
    if path.is_dir():
        raise UserError(
            "a folder is no configuration", got=source, expected="a YAML file or the name of a packaged one"
        )
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        fix = did_you_mean(path.stem, known) or did_you_mean(source, known)
        raise UserError("there is no such configuration file", got=str(path.absolute()), fix=fix)
    raise UserError(f"there is no configuration called `{source}`", fix=did_you_mean(source, known))


def load_config(
    source: str,
    overrides: list[str],
    stage_configs: Sequence[type[StageConfig]],
    code_dir: Path | None = None,
    numbers: Numbers = unknown,
) -> LoadedConfig:
    """Read, override and check a configuration.

    ``overrides`` are ``key=value`` with dotted keys, as ``--set`` gives them; an entry of a list goes by its index
    or, for stages and rewards, by its label. Relative paths become absolute: they start from the configuration file's
    folder or, where that holds nothing of the name, from the current one. Stages and rewards of the user's own are
    looked for in ``code_dir``, by default that same folder, then in the current one and the Python environment.
    ``numbers`` says in messages what a reward expects. Raises: UserError that names every problem at once.
    """
    path = find_config(source)
    user_code.look_in(code_dir or path.parent)
    shown = _shown(path)
    document = yaml_text.parse(_read(path), shown)
    if not isinstance(document.data, dict):
        expected = "options as `key: value` lines"
        raise UserError("this is no configuration", where=shown, got=show(document.data), expected=expected)
    config = _checked(document, Origin, shown, overrides, stage_configs, path.parent, numbers)
    return LoadedConfig(config, path, path.parent)


def config_of_data(
    data: Mapping[str, Any] | PipelineConfig,
    overrides: Sequence[str],
    stage_configs: Sequence[type[StageConfig]],
    numbers: Numbers = unknown,
) -> LoadedConfig:
    """Override and check a configuration that was made in Python: a mapping like a file's content, or a typed one.

    It means what the same file in the current folder would mean: relative paths start there, and stages and rewards of
    the user's own are looked for there. Raises: UserError that names every problem at once.
    """
    folder = Path.cwd()
    user_code.look_in(folder)
    plain = plain_data(data)
    if not isinstance(plain, dict):
        raise UserError("this is no configuration", got=show(plain), expected="a mapping of options")
    document = yaml_text.Document(plain, {})
    config = _checked(document, _DataOrigin, IN_PYTHON, overrides, stage_configs, folder, numbers)
    return LoadedConfig(config, folder / IN_PYTHON, folder)


def plain_data(value: Any) -> Any:
    """Options made in Python as a file would hold them; what was left out of a typed one stays left out."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, Mapping):
        return {key: plain_data(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(each) for each in value]
    return str(value) if isinstance(value, PurePath) else value


class _DataOrigin(Origin):
    """Where the values of a configuration came from that has no lines."""

    def where(self, path: yaml_text.Path) -> str:
        """The key of the value at this path, or the ``--set`` that gave it."""
        found = super().where(path)
        return f"{found}, {self.key(path)}" if found == self.file and path else found


def _checked(
    document: yaml_text.Document,
    origin_class: type[Origin],
    shown: str,
    overrides: Sequence[str],
    stage_configs: Sequence[type[StageConfig]],
    folder: Path,
    numbers: Numbers,
) -> PipelineConfig:
    """The typed configuration that a document of options and the overrides make. Raises: UserError."""
    data, overridden = copy.deepcopy(document.data), {}
    for override in overrides:
        overridden[apply_override(override, data)] = override
    origin = origin_class(shown, yaml_text.Document(_labelled(data), document.lines), overridden)
    tracking = data.get("tracking")
    refuse_secret(tracking.get("uri") if isinstance(tracking, dict) else None, f"{shown}, tracking.uri")
    if tracking is None or isinstance(tracking, dict):
        data["tracking"] = tracking_with_environment(tracking or {})
    model = model_for(data, stage_configs, shown, origin.where)
    try:
        config = model.model_validate(data)
    except ValidationError as error:
        raise explain.explain(error, _labelled(data), model, origin) from None
    refuse_coerced(_labelled(data), config.model_dump(mode="json"), origin, numbers)
    return _with_absolute_paths(config, folder)


def dump_config(config: PipelineConfig) -> str:
    """The configuration with every default filled in, as YAML that loads as the same configuration."""
    return yaml_text.dump(config.model_dump(mode="json"))


def schema(stage_configs: Sequence[type[StageConfig]]) -> dict[str, Any]:
    """JSON schema of a configuration file, for editors. It leaves the options of stages from outside open."""
    described = pipeline_model(stage_configs).model_json_schema()
    names = [{"pattern": "^[^:]+:[^:]+$"}, {"enum": published_names()}]
    stage = {"type": "string", "anyOf": names, "description": "A stage from outside: package.module:STAGE."}
    outside = {"type": "object", "properties": {"stage": stage}, "required": ["stage", "steps"]}
    described["properties"]["stages"]["items"]["oneOf"].append(outside)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **described, "title": "gradus pipeline"}


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(yaml_text.MAX_CHARACTERS + 1)
        if len(raw) > yaml_text.MAX_CHARACTERS:
            raise UserError("the configuration is too large", where=str(path), expected="at most 1 MB")
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise UserError("the configuration cannot be read", where=str(path), got=error.strerror) from None
    except UnicodeDecodeError as error:
        where, fix = f"{path}, byte {error.start}", "save it in UTF-8"
        raise UserError("the configuration is no UTF-8 text", where=where, fix=fix) from None


def _shown(path: Path) -> str:
    """A path as the user would type it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _labelled(data: dict[str, Any]) -> dict[str, Any]:
    """The same data with a name given to every stage, as validation does it."""
    return cast(Any, PipelineConfig)._number_repeated_stages(data)


def apply_override(override: str, data: dict[str, Any]) -> yaml_text.Path:
    """Set one option in place and say where. Raises: UserError."""
    key, equals, text = override.partition("=")
    where = f"--set {override}"
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError("an override is a key and a value", got=where, expected="--set key=value, such as --set seed=1")
    value = yaml_text.parse(text, where).data
    current: Any = data
    path: yaml_text.Path = ()
    while parts:
        part, parts = _next_step(parts, current, path, _labelled(data), where)
        path = (*path, part)
        if not parts:
            current[part] = value
        elif isinstance(current, dict) and current.get(part) is None:
            current[part] = {}
        current = current[part]
    return path


def _next_step(
    parts: list[str], current: Any, path: yaml_text.Path, labelled: dict[str, Any], where: str
) -> tuple[str | int, list[str]]:
    """The key or index that the next part of a dotted key means in ``current``, and the parts after it."""
    key = ".".join(str(part) for part in path)
    if isinstance(current, dict):
        return parts[0], parts[1:]
    if not isinstance(current, list):
        raise UserError(f"`{key}` has no options of its own", where=where, got=show(current), fix=f"set `{key}` itself")
    entries = labelled[key] if path in (("stages",), ("rewards",)) else []
    labels = [label_of(entry) for entry in entries]
    for length in range(len(parts), 0, -1):  # a label may contain dots
        if ".".join(parts[:length]) in labels:
            return labels.index(".".join(parts[:length])), parts[length:]
    if parts[0].isdecimal() and int(parts[0]) < len(current):
        return int(parts[0]), parts[1:]
    known = [label for label in labels if label]
    expected = f"0 to {len(current) - 1}" + (f", or one of: {', '.join(known)}" if known else "")
    fix = did_you_mean(parts[0], known) if known and not parts[0].isdecimal() else ""
    raise UserError(f"`{key}` has no entry `{parts[0]}`", where=where, expected=expected, fix=fix)


def _with_absolute_paths(config: PipelineConfig, base_dir: Path) -> PipelineConfig:
    """The same configuration, independent of the folder it lay in, because a run folder keeps a copy of it."""

    def absolute(path: str) -> str:
        expanded = Path(path).expanduser()
        places = [folder / expanded for folder in (base_dir, Path.cwd())]
        return str(next((place for place in places if place.exists() or glob.glob(str(place))), places[0]))

    def each(paths: str | list[str] | None) -> str | list[str] | None:
        return [absolute(path) for path in paths] if isinstance(paths, list) else paths and absolute(paths)

    def local_or_hub(name: str) -> str:
        found = absolute(name)
        is_path = name.startswith((".", "/", "~"))
        return found if is_path or Path(found).is_dir() else name

    def placed(task: Any) -> Any:
        if isinstance(task, FileTask):
            return task.model_copy(update={"path": each(task.path), "heldout_path": each(task.heldout_path)})
        if isinstance(task, HubTask):
            return task.model_copy(update={"dataset": local_or_hub(task.dataset)})
        return task

    changed: dict[str, Any] = {"task": placed(config.task)}
    changed["tasks"] = config.tasks and {name: placed(task) for name, task in config.tasks.items()}
    known = {START, PREVIOUS, *(stage.label for stage in config.stages)}

    def policy_at(choice: Any) -> Any:
        if isinstance(choice, dict):
            return {task: policy_at(name) for task, name in choice.items()}
        if isinstance(choice, list):
            return [policy_at(name) for name in choice]
        return choice if choice is None or choice in known else local_or_hub(choice)

    def stage_at(stage: Any) -> Any:
        others = {option: policy_at(getattr(stage, option)) for option in stage.other_policies}
        return stage.model_copy(update={"task": placed(stage.task), **others})

    changed["stages"] = [stage_at(stage) for stage in config.stages]
    if config.policy.path is not None:
        changed["policy"] = config.policy.model_copy(update={"path": local_or_hub(config.policy.path)})
    return config.model_copy(update=changed)
