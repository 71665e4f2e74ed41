"""Weights made out of others': by hand-computed numbers, from one file and from several, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gradus.pipeline.common.errors import UserError
from gradus.pipeline.policy.merge_checks import refuse_others
from gradus.pipeline.policy.merging import Merged, average, slerp


def test_the_average_is_the_weighted_mean() -> None:
    one, two, three = torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 6.0]]), torch.tensor([[5.0, 0.5]])
    assert average([one, two], [0.5, 0.5]).tolist() == [[2.0, 2.0]]
    assert average([one, two, three], [0.5, 0.25, 0.25]).tolist() == [[2.5, 0.625]]
    odd = torch.tensor([0.1, 1 / 3, 1e-30])
    assert torch.equal(average([odd, odd.clone(), odd.clone()], [0.7, 0.2, 0.1]), odd), "of equal ones exactly that"


def test_slerp_is_the_point_on_the_arc() -> None:
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    half = math.sqrt(0.5)
    assert slerp([x, y], [0.5, 0.5]).tolist() == pytest.approx([half, half])
    assert slerp([x, y], [2 / 3, 1 / 3]).tolist() == pytest.approx([math.cos(math.pi / 6), math.sin(math.pi / 6)])
    longer = slerp([x, 3 * y], [0.5, 0.5])  # the angle is that of the directions, and lengths are kept
    assert longer.tolist() == pytest.approx([half, 3 * half])
    sixty = torch.tensor([0.5, math.sqrt(0.75)])
    t, o = 0.25, math.pi / 3
    by_hand = [math.sin((1 - t) * o) / math.sin(o) + math.sin(t * o) / math.sin(o) * 0.5,
               math.sin(t * o) / math.sin(o) * math.sqrt(0.75)]  # fmt: skip
    assert slerp([x, sixty], [1 - t, t]).tolist() == pytest.approx(by_hand)


def test_slerp_of_equal_opposite_and_zero_tensors_is_the_average() -> None:
    odd, zero = torch.tensor([0.1, -2.0, 1 / 3]), torch.zeros(3)
    assert torch.equal(slerp([odd, odd.clone()], [0.3, 0.7]), odd)
    assert torch.equal(slerp([odd, -odd], [0.5, 0.5]), zero)
    assert torch.equal(slerp([zero, odd], [0.5, 0.5]), odd / 2)


WEIGHTS = {"a.weight": torch.tensor([[1.0, 2.0]]), "b.weight": torch.tensor([3.0]), "ids": torch.tensor([7])}


def model(folder: Path, plus: float = 0.0, parts: bool = False, **described: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "toy", "hidden_size": 2, "use_cache": parts, **described})
    )
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1}}}))
    (folder / "gradus.json").write_text("{}")
    tensors = {name: value + int(plus) if name == "ids" and plus > 9 else value + (0 if name == "ids" else plus)
               for name, value in WEIGHTS.items()}  # fmt: skip
    if not parts:
        save_file(tensors, folder / "model.safetensors")
        return folder
    places = {name: f"model-{number}.safetensors" for number, name in enumerate(tensors)}
    for name, file in places.items():
        save_file({name: tensors[name]}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def merged(into: Path, like: Path, *models: Path, dtype: torch.dtype = torch.float32) -> Path:
    into.mkdir()
    Merged(like, models, [0.75, 0.25], "average", dtype, None).save(into)  # type: ignore[arg-type]
    return into


def test_a_merged_model_has_the_files_of_the_first_and_its_layout(tmp_path: Path) -> None:
    whole, parts = model(tmp_path / "whole"), model(tmp_path / "parts", plus=4.0, parts=True)
    one = merged(tmp_path / "one", whole, whole, parts)
    assert sorted(file.name for file in one.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert {name: value.tolist() for name, value in load_file(one / "model.safetensors").items()} == {
        "a.weight": [[2.0, 3.0]],
        "b.weight": [4.0],
        "ids": [7],
    }
    several = merged(tmp_path / "several", parts, whole, parts, dtype=torch.bfloat16)
    files = sorted(several.glob("*.safetensors"))
    assert [file.name for file in files] == [f"model-{number}.safetensors" for number in range(3)]
    found = {name: value for file in files for name, value in load_file(file).items()}
    assert found["a.weight"].tolist() == [[2.0, 3.0]] and found["a.weight"].dtype == torch.bfloat16
    again = merged(tmp_path / "again", whole, whole, parts)
    assert (again / "model.safetensors").read_bytes() == (one / "model.safetensors").read_bytes()


def test_models_of_another_kind_are_refused(tmp_path: Path) -> None:
    like = model(tmp_path / "like")
    refuse_others(like, [like, model(tmp_path / "same", plus=1.0, torch_dtype="bfloat16")])
    cases: list[tuple[dict, str, str]] = [
        ({"hidden_size": 4}, "two architectures", "hidden_size: 4, not 2"),
        ({"model_type": "other"}, "two architectures", "model_type: other, not toy"),
    ]
    for number, (described, what, got) in enumerate(cases):
        with pytest.raises(UserError, match=what) as caught:
            refuse_others(like, [model(tmp_path / f"other-{number}", **described)])
        assert got in str(caught.value.got) and str(tmp_path / f"other-{number}") == caught.value.where
    wider = model(tmp_path / "wider")
    save_file({**WEIGHTS, "b.weight": torch.zeros(2), "more": torch.zeros(1)}, wider / "model.safetensors")
    with pytest.raises(UserError, match=r"b\.weight: \[2\], not \[1\]") as caught:
        refuse_others(like, [wider])
    assert "more: [1], not none" in str(caught.value.got)
    shutil.copytree(like, words := tmp_path / "words")
    (words / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 1, "b": 0}}}))
    with pytest.raises(UserError, match="other tokens"):
        refuse_others(like, [words])
    with pytest.raises(UserError, match="ids"):
        merged(tmp_path / "ids", like, like, model(tmp_path / "counted", plus=10.0))
