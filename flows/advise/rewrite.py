"""The advised configuration: the user's file with the advised changes; its comments and layout are kept."""

from __future__ import annotations

import io
from collections.abc import Mapping, MutableMapping, MutableSequence, Sequence
from pathlib import Path
from typing import Any

from gradus.flows.advise.rules import Advice
from gradus.pipeline.common import yaml_text
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.common.files import write_text
from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.config.graph.picture import check_chain
from gradus.pipeline.config.loading import LoadedConfig, apply_override, dump_config, load_config
from gradus.pipeline.config.options import fields_of
from gradus.pipeline.config.pipeline import model_for
from gradus.pipeline.execution.preflight import preflight
from gradus.pipeline.stage import Stage

IMITATION, WARM_UPS, RANKED, LAST = "sft", ("dapo", "vapo"), "gfpo", "srpo"
"""The positions of the chain and the algorithms that may stand there."""
NEW_STEPS = 80
"""Steps of an added stage if no other stage's number can be used: those of the quickstart."""


def check_target(target: Path, force: bool, config: PipelineConfig) -> None:
    """Check, before anything is computed, that the file can be written. Raises: UserError."""
    message = "only a chain can be written anew, and these stages are none"
    fix = "leave out --write, and take what the table says into the file by hand"
    check_chain(config.stages, message, "--write", fix)
    if target.suffix not in (".yaml", ".yml"):
        raise UserError("a configuration is a YAML file", where="--write", got=str(target), expected="a name in .yaml")
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise UserError("this file cannot be made", where="--write", got=str(target), expected="an existing folder")
    if target.exists() and not force:
        raise UserError("this file exists", where="--write", got=str(target), fix="choose another, or add --force")


def write(
    loaded: LoadedConfig,
    overrides: Sequence[str],
    advice: Sequence[Advice],
    stages: Mapping[str, Stage],
    target: Path,
    probed: str,
) -> None:
    """Check and write the advised configuration. If the layout cannot be kept, all options are written instead.

    Raises: UserError if the advice is not to train, or the result does not pass the check.
    """
    solved = next((each for each in advice if each.topic == "already solved" and each.verdict == "yes"), None)
    if solved is not None:
        raise UserError("there is no configuration to advise", got=solved.reason, fix=solved.say)
    header = header_comment(advice, probed)
    kinds = [stage.config for stage in stages.values()]
    expected = _loaded(
        yaml_text.dump(_with_absolute_paths(advised_data(loaded, overrides, advice, stages), loaded, target)),
        target,
        kinds,
    )
    text = header + _edited(loaded, overrides, advice, stages, target)
    try:
        kept = _loaded(text, target, kinds).config == expected.config
    except UserError:
        kept = False
    preflight(expected.config, target.absolute().parent, stages, None, str(target))
    write_text(target.absolute(), text if kept else header + dump_config(expected.config))


def advised_config(
    loaded: LoadedConfig, overrides: Sequence[str], advice: Sequence[Advice], stages: Mapping[str, Stage]
) -> PipelineConfig:
    """The advised configuration; relative paths stay as they were written."""
    data = advised_data(loaded, overrides, advice, stages)
    model = model_for(data, [stage.config for stage in stages.values()], str(loaded.path))
    return model.model_validate(data)


def advised_data(
    loaded: LoadedConfig, overrides: Sequence[str], advice: Sequence[Advice], stages: Mapping[str, Stage]
) -> Any:
    """The plain data of the advised configuration."""
    data = yaml_text.parse(loaded.path.read_text(encoding="utf-8-sig"), str(loaded.path)).data
    for override in overrides:
        apply_override(override, data)
    apply(data, advice, stages)
    return data


def apply(data: MutableMapping[str, Any], advice: Sequence[Advice], stages: Mapping[str, Stage]) -> None:
    """Change a configuration's data in place as advised; what the advice leaves open stays as it is."""
    decided = {each.topic: each for each in advice}
    entries = data["stages"]

    def of(topic: str) -> Advice | None:
        return decided.get(topic) if decided.get(topic) and decided[topic].verdict != "open" else None

    if (first := of("SFT first")) and first.verdict == "yes" and not _positions(entries, IMITATION):
        entries.insert(0, {"stage": IMITATION, "steps": 2 * NEW_STEPS})
    if warm := of("warm-up"):
        _set_warm_up(entries, warm.value, stages)
    if ranked := of("GFPO"):
        _set_ranked(entries, ranked)
    if last := of("SRPO"):
        _set_last(entries, last)
    if size := of("group size K"):
        for entry in entries:
            if entry["stage"] != IMITATION:
                _set_group_size(entry, size.value, stages)
    if (limit := of("max_tokens")) and limit.verdict == "yes":
        _set_max_tokens(data, limit.value)


def _set_warm_up(entries: MutableSequence[Any], name: str, stages: Mapping[str, Stage]) -> None:
    """Replace the first warm-up stage by this algorithm; without one, insert it after imitation."""
    if _positions(entries, name):
        return
    places = _positions(entries, *WARM_UPS)
    if not places:
        entries.insert(max(_positions(entries, IMITATION), default=-1) + 1, {"stage": name, "steps": NEW_STEPS})
        return
    entry, known = entries[places[0]], fields_of(stages[name].config)
    for key in [key for key in entry if key not in known]:
        del entry[key]
    if entry.get("name") == entry["stage"]:
        del entry["name"]
    entry["stage"] = name
    for near in entries[places[0] : places[0] + 2]:
        if "critic" in (near.get("carry") or ()):
            near["carry"] = [each for each in near["carry"] if each != "critic"]


def _set_ranked(entries: MutableSequence[Any], ranked: Advice) -> None:
    """Set the keys of the ranked stage; if there is nothing to rank, give its steps to the warm-up."""
    places = _positions(entries, RANKED)
    warm = _positions(entries, *WARM_UPS)
    if ranked.verdict == "no":
        for place in reversed(places):
            if warm:
                entries[warm[0]]["steps"] += entries[place]["steps"]
            del entries[place]
    elif places:
        for place in places:
            if list(entries[place].get("ranking", ["reward"])) != ranked.value:
                entries[place]["ranking"] = ranked.value
    else:
        steps = entries[warm[-1]]["steps"] if warm else NEW_STEPS
        place = (warm or _positions(entries, IMITATION) or [-1])[-1] + 1
        entries.insert(place, {"stage": RANKED, "steps": steps, "ranking": ranked.value})


def _set_last(entries: MutableSequence[Any], last: Advice) -> None:
    """Add or remove the stabilising stage at the end."""
    places = _positions(entries, LAST)
    if last.verdict == "yes" and not places:
        entries.append({"stage": LAST, "steps": NEW_STEPS, "schedule": "linear"})
    elif last.verdict == "no" and len(entries) > len(places):
        for place in reversed(places):
            del entries[place]


def _set_group_size(entry: MutableMapping[str, Any], size: int, stages: Mapping[str, Stage]) -> None:
    """Set K as advised, and change the prompts per step so that the number of completions stays about the same."""
    fields = stages[entry["stage"]].config.model_fields
    before, prompts = (entry.get(name, fields[name].default) for name in ("group_size", "prompts_per_step"))
    if before != size:
        entry["group_size"] = size
        entry["prompts_per_step"] = max(1, round(prompts * before / size))


def _set_max_tokens(data: MutableMapping[str, Any], limit: int) -> None:
    """Set the limit, and give a new model as many more positions."""
    sampling = data.setdefault("sampling", {})
    added = limit - sampling.get("max_tokens", limit // 2)
    for options in (sampling, *(entry["sampling"] for entry in data["stages"] if entry.get("sampling"))):
        options["max_tokens"] = limit
    architecture = data["policy"].get("architecture") or {}
    if isinstance(architecture.get("max_position_embeddings"), int):
        architecture["max_position_embeddings"] += added


def _positions(entries: Sequence[Any], *names: str) -> list[int]:
    """The positions of the stages with these algorithms."""
    return [place for place, entry in enumerate(entries) if entry["stage"] in names]


def header_comment(advice: Sequence[Advice], probed: str) -> str:
    """The advice as comment lines."""
    import textwrap

    lines = [f"Advised by `gradus advise` from a probe of {probed}."]
    lines += [f"{each.topic}: {each.say}; {each.reason} [{each.rule}]" for each in advice]
    wrapped = (textwrap.wrap(" ".join(line.split()), 112, subsequent_indent="    ") for line in lines)
    return "".join(f"# {line}\n" for part in wrapped for line in part) + "#\n"


def _edited(
    loaded: LoadedConfig, overrides: Sequence[str], advice: Sequence[Advice], stages: Mapping[str, Stage], target: Path
) -> str:
    """The text of the user's file with the changes."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedSeq

    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    data = yaml.load(loaded.path.read_text(encoding="utf-8-sig"))
    for override in overrides:
        apply_override(override, data)
    apply(data, advice, stages)
    for entry in data["stages"]:
        if type(entry.get("ranking")) is list:  # a new list, which is easier to read on one line
            entry["ranking"] = CommentedSeq(entry["ranking"])
            entry["ranking"].fa.set_flow_style()
    stream = io.StringIO()
    yaml.dump(_with_absolute_paths(data, loaded, target), stream)
    return stream.getvalue()


def _with_absolute_paths(data: Any, loaded: LoadedConfig, target: Path) -> Any:
    """Make relative paths absolute if the new file is in another folder than the old one."""
    if target.absolute().parent == loaded.base_dir:
        return data
    for group, key in (("task", "path"), ("task", "heldout_path"), ("task", "dataset"), ("policy", "path")):
        absolute = getattr(getattr(loaded.config, group), key, None)
        if isinstance(data[group].get(key), str) and data[group][key] != absolute:
            data[group][key] = absolute
    return data


def _loaded(text: str, target: Path, kinds: list[Any]) -> LoadedConfig:
    """Load the text as a configuration, from a temporary file beside the target, so that relative paths are right."""
    import tempfile

    with tempfile.NamedTemporaryFile(
        "w", dir=target.absolute().parent, suffix=".yaml", prefix=".", encoding="utf-8"
    ) as file:
        file.write(text)
        file.flush()
        return load_config(file.name, [], kinds)
