"""A run that an earlier version has started is resumed by this one, with a line about it and with the same result."""

from __future__ import annotations

import json

import pytest
from small_pipeline import STAGE_CONFIGS, pipeline
from trained_chain import DONE, Chain, table

from gradus.pipeline.config.pipeline import pipeline_model
from gradus.pipeline.config.stage import OF_A_RUN
from gradus.pipeline.runs.identity import wanted

pytestmark = pytest.mark.usefixtures("quiet_process", "untracked")

CODE = {
    "pipeline/advantages.py": "6ca644ed",
    "pipeline/learner.py": "0a4876c6",
    "pipeline/sampler/loop.py": "aad47f75",
    "pipeline/rollout/external.py": "9daa3d02",
    "pipeline/trainer.py": "51ff0418",
    "pipeline/rewards/library.py": "9af22877",
    "stages/dapo": "4c4143a5",
    "torch": "2.13.0+cpu",
    "transformers": "5.23.0",
    "tokenizers": "0.23.3",
}
"""What stage.json had of the code when the modules of the core were hashed one by one, as ``pipeline/...``."""


@pytest.mark.parametrize("stopped", [1, 2])
def test_a_stage_of_an_earlier_version_is_resumed_with_one_line(chain: Chain, stopped: int) -> None:
    undisturbed = chain.contents()
    chain.stop_after(stopped, 1)
    for index in range(stopped + 1):
        file = chain.run().stage_dir(index) / "stage.json"
        known = json.loads(file.read_text()) | {"code": CODE, "fingerprint": "33643f9be6546376"}
        del known["record"]  # records had no hash
        file.write_text(json.dumps(known))
    planned = chain.tell("plan", "--name", "chain")
    lines = [line for line in planned.splitlines() if "other code" in line]
    labels = [stage.label for stage in chain.run().config.stages]
    assert lines == [
        f"{label} was begun with other code (gradus); what is done is kept" for label in labels[: stopped + 1]
    ]
    rows = table("\n".join(line for line in planned.splitlines() if line not in lines))
    assert rows[stopped] == [labels[stopped], "2", "resume at step 1", "stopped after step 1"]
    assert [row[2:] for row in rows[1:stopped]] == [["reuse", DONE]] * (stopped - 1)
    chain.tell("resume", "chain")
    assert chain.contents() == undisturbed
    assert not chain.run().attempts(stopped), "it was resumed, not started again"


def test_a_run_goes_on_as_it_was_begun_where_a_default_is_another_now() -> None:
    new = pipeline([{"stage": "gfpo", "group_size": 2}])
    assert new.stages[0].model_dump()["ties"] == "agreement" and wanted(new, 0)["stage"]["ties"] == "agreement"
    recorded = new.model_dump(mode="json", by_alias=True)
    del recorded["stages"][0]["ties"]
    run = pipeline_model(STAGE_CONFIGS).model_validate(recorded, context=OF_A_RUN)
    assert run.stages[0].model_dump()["ties"] == "all" and "ties" not in wanted(run, 0)["stage"]
