"""The first prompt of a configuration as its policy would get it, for `gradus check --show-prompt`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from gradus.pipeline.config import PipelineConfig
from gradus.pipeline.execution.prepare import source
from gradus.pipeline.policy.creation import new_prompts
from gradus.pipeline.policy.fit import shown_prompt, template_notes
from gradus.pipeline.policy.loading import load_prompts
from gradus.pipeline.tasks.data import first_prompt, texts
from gradus.pipeline.tasks.several.build import build_tasks


def show_first_prompt(config: PipelineConfig, base_dir: Path) -> tuple[str, list[str]]:
    """(the prompt with its special tokens between « and », notes about its template); loads no weights.

    Raises: UserError where data, tokenizer or template cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="gradus-") as folder:
        tasks = build_tasks(config.named_tasks, base_dir, Path(folder) / "data").asked(config.asked(config.stages[0]))
        if config.policy.path is None:
            encoder = new_prompts(config.policy, texts(tasks))
        else:
            encoder = load_prompts(source(config.policy, base_dir), config.policy)
        prompt = first_prompt(tasks)
        return shown_prompt(encoder, prompt), template_notes(encoder, prompt)
