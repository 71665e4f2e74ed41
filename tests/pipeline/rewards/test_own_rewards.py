"""Rewards from outside the package: beside the configuration, in the current folder, or published by a package."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from own_code import forgotten, publish  # noqa: F401 - fixtures
from typer.testing import CliRunner

from gradus.flows.cli import app
from gradus.pipeline.common import user_code
from gradus.pipeline.common.errors import UserError
from gradus.pipeline.config import RewardConfig
from gradus.pipeline.rewards import RewardSuite, check_rewards, describe
from gradus.pipeline.rewards.user_functions import source_file
from gradus.pipeline.types import Prompt

POLITE = '''raise_here = None

def politeness(prompt, completion, *, word="please"):
    """Whether the ``word`` occurs.

    More of it.
    """
    return float(word in completion)
'''


def scores(config: RewardConfig) -> list[float]:
    with RewardSuite([config]) as suite:
        (found,) = suite.score([Prompt(id="1", question="?", answer="")], [["please", "now"]]).components.values()
    return found[0]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages: one whose reward works, and one whose do not."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "polite.py").write_text(POLITE)
    publish(folder, "polite-package", "gradus.rewards", {"politeness": "polite:politeness"})
    broken = {"gone": "gone_package:f", "rude": "polite:rudeness", "length": "polite:politeness"}
    publish(folder, "broken-package", "gradus.rewards", broken)
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    return folder


def test_a_reward_is_found_beside_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "polite.py").write_text(POLITE)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = RewardConfig(reward="polite:politeness")
    with pytest.raises(UserError, match=r"no module 'polite'"):
        check_rewards([config])
    user_code.look_in(tmp_path)
    assert scores(config) == [1.0, 0.0]
    assert source_file(config.reward) == tmp_path / "polite.py"
    # the configuration's own folder comes before the current one
    (elsewhere / "polite.py").write_text(POLITE.replace("in completion", "not in completion"))
    assert scores(config) == [1.0, 0.0]


def test_a_published_reward_goes_by_its_name(site: Path) -> None:
    config = RewardConfig(reward="politeness", params={"word": "now"})
    assert config.label == "politeness"
    assert scores(config) == [0.0, 1.0]
    assert source_file("politeness") == site / "polite.py"
    assert "polite" not in sys.modules, "the trainer runs none of its code"
    with pytest.raises(UserError, match="did you mean `word`"):
        check_rewards([RewardConfig(reward="politeness", params={"wrod": "now"})])


def test_the_listing_says_where_each_comes_from_and_survives_broken_ones(site: Path) -> None:
    rows = {(row["name"], row["from"].partition(",")[0]): row for row in describe()}
    polite = rows["politeness", "polite:politeness"]
    assert polite["from"] == "polite:politeness, entry point of polite-package 1.0"
    assert polite["options"] == "word" and polite["summary"] == "Whether the `word` occurs."
    assert rows["exact_answer", "gradus"]["runs"]
    assert "no module 'gone_package'" in rows["gone", "gone_package:f"]["summary"]
    assert "defines no 'rudeness'" in rows["rude", "polite:rudeness"]["summary"]
    assert "has this name" in rows["length", "polite:politeness"]["summary"]
    said = CliRunner().invoke(app.app, ["rewards"]).output
    assert "entry point of broken-package 1.0" in said and "from: gradus" in said
    listed = json.loads(CliRunner().invoke(app.app, ["rewards", "--json"]).stdout)
    assert [row["name"] for row in listed] == [row["name"] for row in describe()]


def test_a_broken_package_fails_only_where_it_is_named(site: Path) -> None:
    check_rewards([RewardConfig(reward="politeness"), RewardConfig(reward="length", params={"max": 3})])
    with pytest.raises(UserError, match=r"no module 'gone_package'"):
        check_rewards([RewardConfig(reward="gone")])
    with pytest.raises(UserError, match="did you mean `politeness`"):
        check_rewards([RewardConfig(reward="politness")])


def test_an_unknown_reward_says_how_to_name_one_of_your_own() -> None:
    with pytest.raises(UserError) as caught:
        check_rewards([RewardConfig(reward="exact")])
    assert "exact_answer" in caught.value.expected and "`package.module:function`" in caught.value.expected
