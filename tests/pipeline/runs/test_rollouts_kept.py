"""The groups that a stage keeps for a person to read: which, what of them, how large, and after kills and forks."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_runs import KILL, TERM, assert_same, run_lives
from scored_batches import scored
from small_pipeline import launch, pipeline
from trained_chain import Chain

from gradus.pipeline.common import yaml_text
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config.pipeline import TrackingConfig
from gradus.pipeline.runs.run_folder import RunFolder
from gradus.pipeline.runs.sampled.read import sampled_groups
from gradus.pipeline.runs.sampled.record import ROLLOUTS_FILE, RolloutRecord
from gradus.pipeline.tasks.prompts.step_lines import step_lines
from gradus.pipeline.types import Prompt, Rollouts
from gradus.stages import discover


def lines(file: Path) -> list[dict[str, Any]]:
    found = [line for _, line in step_lines(file)]
    assert None not in found, "damaged"
    return [line for line in found if line is not None]


def record(file: Path, ranking: tuple[str, ...] = (), **options: int) -> RolloutRecord:
    return RolloutRecord(
        file, TrackingConfig(**{f"rollouts_{name}": value for name, value in options.items()}), ranking
    )


def batch(texts: list[list[str]], rewards: list[list[float]], **fields: Any) -> Rollouts:
    prompts = [Prompt(f"p{at}", f"question {at}", "1") for at in range(len(texts))]
    rewards_PK = torch.tensor(rewards)
    made = scored(prompts, (rewards_PK > 0.5).tolist())
    given: dict[str, Any] = {"texts": texts, "rewards_PK": rewards_PK, "components": {"exact": rewards_PK}}
    return replace(made, **given | fields)


def test_a_completion_is_kept_with_what_was_made_of_it(tmp_path: Path) -> None:
    valid_PK = torch.tensor([[True, True, True, False]])
    steps_PK = torch.tensor([[0.1, 0.7, 0.2, 0.1]])
    rollouts = batch(
        [["a", "b", "c", "d"]], [[0.0, 1.0, 1.0, 0.5]], valid_PK=valid_PK,
        components={"exact": torch.tensor([[0.0, 1.0, 1.0, math.nan]]), "steps": steps_PK},
        truncated_PK=torch.tensor([[True, False, False, False]]),
    )  # fmt: skip
    weights = torch.tensor([[[-1.0, -3.0], [0.1, 0.1], [0.0, 0.5], [0.0, 0.0]]])
    assert record(tmp_path / "r", ("reward", "steps")).add(rollouts, weights, 1)
    (group,) = lines(tmp_path / "r")
    assert (group["step"], group["prompt"], group["question"], group["answer"]) == (1, "p0", "question 0", "1")
    assert (group["size"], group["correct"], group["mean_reward"]) == (4, 2, pytest.approx(2 / 3, abs=1e-6))
    told = [(each["text"], each["reward"], each["rank"], each["weight"]) for each in group["completions"]]
    assert told == [("a", 0.0, 3, -2.0), ("b", 1.0, 1, 0.1), ("c", 1.0, 2, 0.25), ("d", None, None, 0.0)]
    assert [each["truncated"] for each in group["completions"]] == [True, False, False, False]
    assert group["completions"][3]["components"] == {"exact": None, "steps": 0.1}
    assert group["completions"][1]["tokens"] == 2


def test_what_a_ranking_key_has_no_score_of_has_no_rank(tmp_path: Path) -> None:
    key = torch.tensor([[0.1, math.nan, 0.3]])
    rollouts = batch([["a", "b", "c"]], [[1.0, 1.0, 1.0]], components={"key": key})
    record(tmp_path / "r", ("reward", "key")).add(rollouts, torch.zeros(1, 3), 1)
    assert [each["rank"] for each in lines(tmp_path / "r")[0]["completions"]] == [2, None, 1]


def test_a_group_has_the_rewards_of_its_own_task(tmp_path: Path) -> None:
    none = [math.nan, math.nan]
    components = {"sums": torch.tensor([[1.0, math.nan], none, none]), "words": torch.tensor([none, [0.0, 0.5], none])}
    valid_PK = torch.tensor([[True, False], [True, True], [False, False]])
    rollouts = batch([["a", "b"]] * 3, [[1.0, 0.0], [0.0, 0.5], [0.0, 0.0]], components=components, valid_PK=valid_PK)
    record(tmp_path / "r").add(rollouts, torch.zeros(3, 2), 1)
    found = [[each["components"] for each in group["completions"]] for group in lines(tmp_path / "r")]
    assert found[0] == [{"sums": 1.0}, {"sums": None}] and found[1] == [{"words": 0.0}, {"words": 0.5}]
    assert found[2] == [{"sums": None, "words": None}] * 2, "that everything failed is shown"


def test_the_first_step_and_every_so_many_are_kept(tmp_path: Path) -> None:
    rollouts = batch([["a"]] * 8, [[1.0]] * 8)
    for name, options in (("r", {"every": 3, "groups": 3}), ("none", {"every": 0}), ("no group", {"groups": 0})):
        kept = record(tmp_path / name, **options)
        for step in range(1, 8):
            assert bool(kept.add(rollouts, torch.zeros(8, 1), step)) == (name == "r" and step in (1, 3, 6))
    found = [(line["step"], line["group"]) for line in lines(tmp_path / "r")]
    assert found == [(step, group) for step in (1, 3, 6) for group in (0, 2, 5)], "from the whole of a batch"
    assert not (tmp_path / "none").exists() and not (tmp_path / "no group").exists()


@pytest.mark.parametrize("letter", ["a", "\N{SNOWMAN}", "\U0001f600", "\x00", "\ud800"])
@pytest.mark.parametrize("count", [1, 16, 700])
def test_a_group_never_has_more_bytes_than_asked_for(tmp_path: Path, letter: str, count: int) -> None:
    texts = [f"begin {number} {letter * 40_000} end {number}" for number in range(count)]
    rollouts = batch([texts], [[1.0] * count])
    prompts = [replace(rollouts.prompts[0], question=letter * 9000, answer=letter * 9000)]
    for size in (2048, 32768):
        file = tmp_path / str(size)
        record(file, bytes=size).add(replace(rollouts, prompts=prompts), torch.zeros(1, count), 1)
        assert size / 3 < file.stat().st_size <= size
        (group,) = lines(file)
        assert group["size"] == group["correct"] == count
        for number, each in enumerate(group["completions"]):
            begin, said, end = each["text"].split("\n")
            assert begin.startswith(f"begin {number} ") and end.endswith(f" end {number}") and each["cut"]
            left = int(said.split()[1].replace(",", ""))
            assert len(begin) + left + len(end) == len(texts[number])
        assert len(group["completions"]) in (count, 0) or count > 1


def test_a_long_completion_costs_the_short_ones_nothing(tmp_path: Path) -> None:
    record(tmp_path / "r", bytes=4096).add(batch([["short", "x" * 9000]], [[1.0, 1.0]]), torch.zeros(1, 2), 1)
    short, long = lines(tmp_path / "r")[0]["completions"]
    assert short["text"] == "short" and "cut" not in short
    assert 2000 < len(long["text"]) < 4096 and long["cut"]


STAGES = [
    {"stage": "sft"},
    {"stage": "srpo", "variant": "paper", "group_size": 2, "async": 1},
    {"stage": "dapo", "variant": "paper", "group_size": 2, "refills": 1},
    {"stage": "gfpo", "group_size": 4},
]


def test_a_killed_run_keeps_the_same_once(tmp_path: Path) -> None:
    stages = [{**stage, "steps": 5, "prompts_per_step": 5} for stage in STAGES]
    rewards = [{"reward": "length", "params": {"max": 5, "falloff": 15}}, {"reward": "equation_steps"}]
    given = {"rewards": rewards, "evaluation": {"threshold": 0.4}, "checkpoints": {"every_steps": 2}}
    config = pipeline(stages, tracking={"rollouts_every": 2, "rollouts_groups": 3}, **given)
    (tmp_path / "config.yaml").write_text(yaml_text.dump(config.model_dump(mode="json")))
    undisturbed = run_lives(tmp_path, "undisturbed", "-")
    lives = [f"srpo:1:0.5:{KILL}", f"srpo:4:0.5:{TERM}", f"dapo:3:0.9:{KILL}", f"gfpo:2:0.5:{KILL}"]
    killed = run_lives(tmp_path, "killed", *lives, "-")
    assert_same(undisturbed, killed)
    assert not (killed.stage_dir(0) / ROLLOUTS_FILE).exists(), "nothing is sampled for demonstrations"
    for index in (1, 2, 3):
        files = [run.stage_dir(index) / ROLLOUTS_FILE for run in (undisturbed, killed)]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert [line["step"] for line in lines(files[1])][::3] == [1, 2, 4]
    assert any(each["weight"] for group in lines(files[1]) for each in group["completions"])


def test_a_resume_forgets_what_is_behind_its_checkpoint(tmp_path: Path) -> None:
    """Also where it keeps others by now, and where a kill, or a disk, damaged the end."""
    rollouts, weights = batch([["a"]], [[1.0]]), torch.zeros(1, 1)
    first = record(tmp_path / "r", every=1)
    for step in range(1, 6):
        first.add(rollouts, weights, step)
    with (tmp_path / "r").open("ab") as file:
        file.write(b'{"step": 6, "half')
    assert not record(tmp_path / "r", every=20).add(rollouts, weights, 4)
    assert [line["step"] for line in lines(tmp_path / "r")] == [1, 2, 3]


def found_in(run: RunFolder, **options: Any) -> dict[str, Any]:
    return sampled_groups(run, discover(), **options)


@pytest.mark.usefixtures("quiet_process", "untracked")
def test_a_fork_shows_what_it_shares(chain: Chain) -> None:
    chain.tell("fork", "chain", "--from", "gfpo", "--name", "other", "--no-run")
    shared = found_in(chain.run("other"))
    assert shared["stage"] == "dapo" and shared["groups"] == found_in(chain.run(), label="dapo")["groups"]
    chain.tell("resume", "chain", "--from", "dapo")  # sets aside what the fork refers to
    assert found_in(chain.run("other"))["groups"] == shared["groups"]


def test_groups_are_chosen(tmp_path: Path) -> None:
    config = pipeline(
        [{"stage": "dapo", "group_size": 4, "steps": 5}, {"stage": "merge", "of": ["start", "dapo"]}],
        rewards=[{"reward": "length", "params": {"max": 5, "falloff": 15}}], tracking={"rollouts_every": 2},
    )  # fmt: skip
    run = launch(tmp_path, config)
    found = found_in(run)
    assert (found["stage"], found["steps"], {group["step"] for group in found["groups"]}) == ("dapo", [1, 2, 4], {4})
    assert len(found["groups"]) == 3 and found["equations"] is False
    every = [group for step in found["steps"] for group in found_in(run, step=step)["groups"]]
    prompt = every[-1]["prompt"]
    of_it = found_in(run, prompt=prompt[:9])["groups"]
    assert of_it and of_it == [group for group in every if group["prompt"] == prompt]
    means = sorted(group["mean_reward"] for group in every)
    assert [group["mean_reward"] for group in found_in(run, best=2)["groups"]] == means[:-3:-1]
    assert [group["mean_reward"] for group in found_in(run, worst=2)["groups"]] == means[:2]
    assert len(found_in(run, best=90, worst=90)["groups"]) == len(every)
    assert len(found_in(run, best=90, step=1)["groups"]) == 3
    with pytest.raises(UserError, match=r"(?s)step 3 were kept.*--step 3.*one of 1, 2, 4") as refused:
        found_in(run, step=3)
    assert "rollouts_every" in refused.value.fix
    with pytest.raises(UserError, match="no group of this prompt"):
        found_in(run, prompt="nobody")
    with pytest.raises(UserError, match="made from other checkpoints"):
        found_in(run, label="merge")


def test_where_there_is_nothing_the_reason_is_told(tmp_path: Path) -> None:
    stages = [{"stage": "sft"}, {"stage": "dapo"}]
    run = launch(tmp_path, pipeline(stages, tracking={"rollouts_every": 0}))
    with pytest.raises(UserError, match=r"(?s)sft: it learns from demonstrations.*dapo: .*rollouts_every.* is 0"):
        found_in(run)
    run = launch(tmp_path, pipeline(stages), name="old")
    (run.stage_dir(1) / ROLLOUTS_FILE).unlink()  # as of a version that kept none
    with pytest.raises(UserError, match="by a version that kept none"):
        found_in(run, label="dapo")
    with pytest.raises(UserError, match="no stage `nobody`"):
        found_in(run, label="nobody")
    config = pipeline(stages)
    begun = RunFolder.create(tmp_path / "runs", config, "begun", tmp_path / "tiny.yaml", run.stage_configs)
    with pytest.raises(UserError, match="dapo: it has not taken a step yet"):
        found_in(begun)


def test_a_damaged_line_and_what_is_behind_it_is_not_shown(tmp_path: Path) -> None:
    run = launch(tmp_path, pipeline([{"stage": "dapo", "steps": 3}], tracking={"rollouts_every": 1}))
    file = run.stage_dir(0) / ROLLOUTS_FILE
    raw = file.read_bytes().splitlines(keepends=True)
    raw[5] = raw[5].replace(b'"question": "', b'"question": "not ')
    file.write_bytes(b"".join(raw))
    assert found_in(run)["steps"] == [1, 2] and len(found_in(run)["groups"]) == 2
    assert json.loads(raw[5])["question"].startswith("not ")
