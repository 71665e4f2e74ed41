"""A folder that is no whole model is refused before compute, with the file and what is wrong with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Gradus
from safetensors.torch import load_file, save_file
from tiny_policies import tiny_policy

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import PolicyConfig
from gradus.pipeline.policy.checks import check_policy
from gradus.pipeline.policy.creation import create_policy
from gradus.pipeline.policy.loading import load_policy
from gradus.pipeline.policy.stored_weights import stored_shapes

Change = Callable[[Path], object]
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder as another library writes it."""
    folder = tmp_path_factory.mktemp("model") / "whole"
    tiny_policy().save(folder)
    (folder / "template.json").unlink()
    return folder


def weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    def changed(folder: Path) -> None:
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})

    return changed


def config(**changes: Any) -> Change:
    def changed(folder: Path) -> None:
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(described | changes), encoding="utf-8")

    return changed


def text(name: str, content: str | bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def removed(pattern: str) -> Change:
    return lambda folder: [file.unlink() for file in folder.glob(pattern)]


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def sharded(folder: Path, *, lost_file: bool = False, lost_weight: bool = False) -> None:
    """The same weights in two files."""
    names, whole = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], load_file(folder / WEIGHTS)
    files = {weight: names[place % 2] for place, weight in enumerate(sorted(whole))}
    for name in names[: 1 if lost_file else 2]:
        kept = {weight: whole[weight] for weight, file in files.items() if file == name}
        save_file(dict(list(kept.items())[lost_weight:]), folder / name, metadata={"format": "pt"})
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}), encoding="utf-8")
    (folder / WEIGHTS).unlink()


SEEN_BY_CHECK: dict[str, tuple[Change, str, str]] = {
    "layers are missing": (
        weights(lambda w: {name: value for name, value in w.items() if ".layers.1." not in name}), "", "of layer 1,"),
    "a layer in the middle is missing": (
        weights(lambda w: {name: value for name, value in w.items() if ".layers.0." not in name}), "", "of layer 0,"),
    "ten million layers": (config(num_hidden_layers=10_000_000), "config.json", "10,000,000"),
    "more layers than weights": (config(num_hidden_layers=9_999), "", "of layer 2,"),
    "no layers": (config(num_hidden_layers=0), "config.json", "0 layers"),
    "empty weights": (text(WEIGHTS, b""), WEIGHTS, "an empty file"),
    "weights that end early": (cut, WEIGHTS, "bytes, where the header describes"),
    "weights of seven bytes": (text(WEIGHTS, b"weights"), WEIGHTS, "7 bytes"),
    "weights that are text": (text(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n" * 4), WEIGHTS, "172 bytes"),
    "a header that is no JSON": (text(WEIGHTS, (4).to_bytes(8, "little") + b"{[}]"), WEIGHTS, "a header that cannot"),
    "a header of another form": (text(WEIGHTS, (2).to_bytes(8, "little") + b"[]"), WEIGHTS, "a header that cannot"),
    "no tensors": (text(WEIGHTS, (2).to_bytes(8, "little") + b"{}"), "", ""),
    "a lost shard": (lambda folder: sharded(folder, lost_file=True), f"{WEIGHTS}.index.json", "model-00002"),
    "a shard without a weight": (lambda folder: sharded(folder, lost_weight=True), "", "lm_head.weight"),
    "an index of another form": (
        lambda folder: (sharded(folder), text(f"{WEIGHTS}.index.json", "[]")(folder)), f"{WEIGHTS}.index.json", ""),
    "only the weights of another library": (
        lambda folder: (folder / WEIGHTS).rename(folder / "consolidated.safetensors"), "", ""),
    "pickled weights": (
        lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"), "policy.path", "pytorch_model.bin"),
    "a list as description": (text("config.json", "[]"), "config.json", "list"),
    "a description that ends early": (text("config.json", '{"model'), "config.json", "Unterminated"),
    "a description that is not UTF-8": (text("config.json", b'{"a": "\xff"}'), "config.json", "utf-8"),
    "a description without end": (text("config.json", "[" * 100_000), "config.json", ""),
    "an unknown type of model": (config(model_type="lamma"), "config.json, model_type", ""),
    "a broken tokenizer": (text("tokenizer.json", '{"model": '), "tokenizer.json", "Expecting value"),
    "a list as settings of the tokenizer": (text("tokenizer_config.json", "[]"), "tokenizer_config.json", "list"),
    "a broken description of generation": (text("generation_config.json", "{"), "generation_config.json", ""),
    "no tokenizer": (removed("tokenizer*"), "", ""),
}  # fmt: skip
"""What is wrong -> how it came about, the file that the message names, and what it says of it."""

SEEN_WHEN_LOADED: dict[str, tuple[Change, str]] = {
    "names with another prefix": (weights(lambda w: {f"x.{name}": value for name, value in w.items()}), "x.lm_head"),
    "one weight is missing": (
        weights(lambda w: {n: v for n, v in w.items() if n != "model.norm.weight"}), "model.norm.weight"),
    "no head": (weights(lambda w: {n: v for n, v in w.items() if n != "lm_head.weight"}), "lm_head.weight"),
    "a weight of a layer is missing": (
        weights(lambda w: {n: v for n, v in w.items() if n != "model.layers.1.mlp.up_proj.weight"}), "1.mlp.up_proj"),
    "a wrong shape": (
        weights(lambda w: w | {"model.norm.weight": w["model.norm.weight"][:5].clone()}), "[5], not [32]"),
    "another width": (config(hidden_size=64, head_dim=16), "[48, 32], not [48, 64]"),
    "more layers than the description": (config(num_hidden_layers=1), "model.layers.1."),
    "a width below zero": (config(hidden_size=-4), "-4"),
    "a width in words": (config(hidden_size="wide"), "hidden_size"),
    "an unknown activation": (config(hidden_act="sillu"), "sillu"),
    "a width beyond all memory": (config(intermediate_size=10**9), "GB of weights"),
    "a tokenizer of another form": (text("tokenizer.json", "{}"), ""),
    "a tokenizer without its vocabulary": (removed("tokenizer.json"), ""),
    "a number as vocabulary": (text("tokenizer.json", '{"model": {"vocab": 7}}'), ""),
    "a template that cannot be applied": (
        text("chat_template.jinja", "{{ raise_exception('no, never') }}"), "no, never"),
    "a template with a mistake": (text("chat_template.jinja", "{% for %}"), "Expected"),
}  # fmt: skip


@pytest.mark.parametrize("case", SEEN_BY_CHECK)
def test_check_and_loading_name_the_file_and_what_is_wrong(whole: Path, tmp_path: Path, case: str) -> None:
    change, file, got = SEEN_BY_CHECK[case]
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    change(folder)
    asked = PolicyConfig(path=str(folder), device="cpu")
    with pytest.raises(UserError) as checked:
        check_policy(asked)
    where = file if file == "policy.path" else str(folder / file)
    assert checked.value.where == where and got in str(checked.value.got or "") and checked.value.fix
    with pytest.raises(UserError) as loaded:
        load_policy(folder, asked)
    assert str(loaded.value) == str(checked.value)


@pytest.mark.parametrize("case", SEEN_WHEN_LOADED)
def test_what_only_the_model_itself_shows_is_refused_when_it_is_loaded(whole: Path, tmp_path: Path, case: str) -> None:
    change, got = SEEN_WHEN_LOADED[case]
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    change(folder)
    asked = PolicyConfig(path=str(folder), device="cpu")
    check_policy(asked)
    with pytest.raises(UserError) as refused:
        load_policy(folder, asked)
    assert got in str(refused.value.got) and refused.value.where and refused.value.fix


@pytest.mark.parametrize("tied", [False, True])
def test_whole_models_are_taken_in_one_file_and_in_several(whole: Path, tmp_path: Path, tied: bool) -> None:
    """Also with a tied head, which is not stored, without the prefix of the base model, and with weights beside it."""
    folder = tmp_path / "model"
    policy = tiny_policy(tie_word_embeddings=tied)
    policy.save(folder)
    assert ("lm_head.weight" in load_file(folder / WEIGHTS)) != tied
    expected = policy.model.state_dict()
    weights(lambda w: {n.removeprefix("model."): v for n, v in w.items()} | {"vision.patch": torch.ones(2)})(folder)
    for change in (lambda _: None, sharded):
        change(folder)
        asked = PolicyConfig(path=str(folder), device="cpu")
        check_policy(asked)
        loaded = load_policy(folder, asked).model.state_dict()
        assert loaded.keys() == expected.keys() and all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert stored_shapes(folder)["norm.weight"] == [32]


@pytest.mark.parametrize(
    ("architecture", "got"),
    [
        ({"model_type": "llama", "num_hidden_layers": 10_000_000}, "10,000,000 layers"),
        ({"model_type": "gpt2", "n_layer": 10_000_000}, "10,000,000 layers"),
    ],
)
def test_a_new_model_of_ten_million_layers_is_refused(architecture: dict[str, Any], got: str) -> None:
    with pytest.raises(UserError) as checked:
        check_policy(PolicyConfig(architecture=architecture))
    assert checked.value.where == "policy.architecture" and got in str(checked.value.got)


def test_a_new_model_larger_than_the_memory_is_refused_before_it_is_made() -> None:
    with pytest.raises(UserError, match="larger than this machine's memory") as refused:
        create_policy(PolicyConfig(architecture={"model_type": "gpt2", "n_embd": 1_000_000, "n_head": 2}), ["1"], 0)
    assert refused.value.where == "policy.architecture"


ENDLESS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% if a < 0 %}{{ b }}{% endif %}{% endfor %}{% endfor %}"
)


def test_a_chat_template_without_end_is_ended(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The template would take hours. What the limit is does not matter, so it is short here."""
    monkeypatch.setattr("gradus.pipeline.policy.prompts.RENDER_SECONDS", 0.2)
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    (folder / "chat_template.jinja").write_text(ENDLESS, encoding="utf-8")
    with pytest.raises(UserError, match="chat template cannot be applied") as refused:
        load_policy(folder, PolicyConfig(path=str(folder), device="cpu"))
    assert "no end within" in str(refused.value.got) and "policy.template=plain" in refused.value.fix
    load_policy(folder, PolicyConfig(path=str(folder), device="cpu", template="plain"))


def test_the_commands_end_with_2_and_leave_no_run(whole: Path, gradus: Gradus) -> None:
    folder = gradus.folder / "model"
    shutil.copytree(whole, folder)
    SEEN_BY_CHECK["layers are missing"][0](folder)
    asked = [str(gradus.config), "--set", f"policy={{path: {folder}}}", "--runs", str(gradus.runs)]
    for words in (["check", *asked], ["run", *asked], ["sample", str(folder), "1 + 2 ="]):
        said = gradus(*words, code=2).stderr
        assert "the weights lack layers" in said and str(folder) in said and "This is not your doing" not in said
    assert not gradus.runs.exists()
    shutil.rmtree(folder)
    shutil.copytree(whole, folder)
    SEEN_WHEN_LOADED["names with another prefix"][0](folder)
    assert "x.lm_head.weight" in gradus("sample", str(folder), "1 + 2 =", code=2).stderr
    for seed in (2**63, 2**64):
        assert "seed" in gradus("check", str(gradus.config), "--set", f"seed={seed}", code=2).stderr
    gradus("check", str(gradus.config), "--set", f"seed={2**63 - 1}")
