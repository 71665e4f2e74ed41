"""The options that every stage has; each algorithm adds its own in its file."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, model_validator

from gradus.pipeline.config.options import RUNTIME, Name, Options
from gradus.pipeline.config.policy import TemplateArguments
from gradus.pipeline.config.prompts import CurriculumConfig, DemonstrationsConfig, OrderConfig, PromptsConfig
from gradus.pipeline.config.rewards import EvaluationConfig, RewardConfig
from gradus.pipeline.config.stopping import Guard, Until
from gradus.pipeline.config.task import TaskChoice
from gradus.pipeline.config.training.objective import EntropyConfig, PolicyChoice, RatioBounds


class SamplingConfig(Options):
    """How completions are drawn."""

    max_tokens: int = Field(64, ge=1)
    """Longest completion, in tokens, its end-of-sequence token included."""
    temperature: float = Field(1.0, gt=0)
    """Divides the logits; log-probabilities are those of the scaled policy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Keep the smallest set of tokens whose probability reaches this; 1 keeps all."""
    top_k: int = Field(0, ge=0)
    """Keep this many most probable tokens; 0 keeps all."""
    min_tokens: int | None = Field(None, ge=1)
    """Shortest completion, in tokens, its end-of-sequence token included: no end token is drawn before, and no ``stop``
    counts. As with ``top_p`` and ``ban``, log-probabilities remain those of the scaled policy, without any limit."""
    stop: list[Annotated[str, Field(min_length=1)]] | None = None
    """Texts that end a completion, and stay in it."""
    ban: list[Annotated[int, Field(ge=0)] | Annotated[str, Field(min_length=1)]] | None = None
    """Tokens that are never drawn, by their texts or their numbers."""
    token_budget: Annotated[int, RUNTIME] = Field(65_536, ge=1)
    """Tokens (prompt + max_tokens, times rows) that one sampling batch may hold; bounds the KV cache."""

    @model_validator(mode="after")
    def _shortest_is_no_longer_than_longest(self) -> SamplingConfig:
        if self.min_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"`min_tokens` ({self.min_tokens}) is more than `max_tokens` ({self.max_tokens})")
        return self


STALE_CLIP = (0.2, 0.28)
"""Bounds of the ratio with ``async`` where none are given: those of arXiv 2503.14476."""


OF_A_RUN = "of a run"
"""The context in which the configuration in a run folder is validated."""


class StageOptions(Options):
    """Options that every stage has, whether it trains or makes its checkpoint otherwise."""

    earlier: ClassVar[dict[str, Any]] = {}
    """option -> what runs do that were begun before there was this option, where its default is something else."""
    trains: ClassVar[bool] = True
    """Whether the stage takes steps of an algorithm."""
    origin: ClassVar[str | None] = None
    """``package.module:STAGE`` where the stage is not one of the package's own."""
    other_policies: ClassVar[tuple[str, ...]] = ()
    """The options that choose other policies than the one that the stage starts from."""
    stage: str
    """The algorithm (``gradus stages`` lists them), or one of your own as ``package.module:STAGE``."""
    name: Name | None = None
    """Folder and display name; default: the algorithm's name, numbered where it repeats."""
    from_: Name | None = Field(None, alias="from")
    """The earlier stage whose checkpoint this one starts from, or ``start`` for the policy before any stage; default:
    the stage before it in the list."""
    task: TaskChoice | None = None
    """What the stage trains on: the name of one of the pipeline's ``tasks``, a mixture of them with the share that each
    has of every batch, or a task of its own; default: the pipeline's ``task``."""
    rewards: list[RewardConfig] | None = None
    """How completions are scored in this stage, in place of the task's or the pipeline's rewards."""
    extra_rewards: list[RewardConfig] | None = None
    """Rewards of this stage beside those."""
    evaluation: EvaluationConfig | None = None
    """Which completions of this stage's tasks are correct; default: as the task or the pipeline says."""
    system: str | None = None
    """What the system turn says in this stage, in conversations without one of their own, in place of the task's."""
    template_args: TemplateArguments | None = None
    """Arguments of the chat template in this stage, such as ``enable_thinking: false``, beside the task's and the
    policy's."""

    @property
    def label(self) -> str:
        """The name of the stage in this pipeline."""
        return self.name or self.stage

    @model_validator(mode="before")
    @classmethod
    def _as_begun(cls, raw: Any, info: ValidationInfo) -> Any:
        """A run's own configuration has every option; one that it lacks did not exist when the run was begun."""
        return {**cls.earlier, **raw} if info.context == OF_A_RUN and isinstance(raw, dict) else raw


class StageConfig(StageOptions):
    """Options that every stage that trains has; each algorithm adds its own."""

    replaced: ClassVar[dict[str, str]] = {
        "stop_at": "write `until: {accuracy: ...}`; as it goes by the lower bound, 0.45 is what 0.5 was with 300 "
        "validation prompts"
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    """variant -> the options that it sets where they are not given."""
    own_ratio: ClassVar[str] = ""
    """The option by which the algorithm bounds a ratio of its own to the sampler's policy, in place of ``clip``."""
    other_policies: ClassVar[tuple[str, ...]] = ("reference",)
    variant: Literal["manual", "paper"] = "manual"
    """Which definition of the algorithm, the operating manual's or the published one of that name: a preset of options,
    each of which can be set by itself."""
    steps: int = Field(ge=1)
    """Batches to train on, or fewer where a rule of ``until`` or the ``guard`` ends the stage."""
    prompts_per_step: int = Field(16, ge=1)
    """P, the prompts in a batch."""
    group_size: int = Field(8, ge=2)
    """K, the completions sampled for each prompt; a comparison needs at least two."""
    lr: float = Field(1e-4, gt=0)
    """Peak learning rate of AdamW."""
    warmup: int = Field(10, ge=0)
    """Steps of linear warm-up; fresh Adam moments at full rate can destroy a policy in 20 steps."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or falling so that it would be zero one step after the last."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay, on matrices only."""
    grad_clip: float = Field(1.0, gt=0)
    """Largest global gradient norm of an update."""
    score: Literal["sum", "mean", "batch"] = "mean"
    """A completion's log-probability: its tokens' sum, their mean, or the sum divided by the batch's mean length."""
    updates_per_batch: int = Field(1, ge=1)
    """Passes over a batch; all updates but the first are off-policy (see ``clip``)."""
    minibatches: int = Field(1, ge=1)
    """Parts of whole groups that a batch is cut into, with an optimizer update each."""
    clip: tuple[Annotated[float, Field(gt=0, lt=1)], Annotated[float, Field(gt=0)]] | None = None
    """[low, high]: bound the probability ratio to the sampler's policy to [1-low, 1+high]; null: no ratio at all.
    Default: null, or [0.2, 0.28] with ``async``."""
    old_logprobs: Literal["sampler", "recompute"] = "sampler"
    """Source of the ratio's denominator: the log-probabilities that the sampler recorded, or those of one more forward
    pass before the first update. Useful where sampler and trainer disagree (``update/train_sample_mismatch``)."""
    importance_cap: float = Field(2.0, gt=0)
    """Cap of the truncated importance weight pi(token) / pi_sampler(token), where another engine generated the
    completions (``rollouts.engine``), or ``mask_sequences`` or ``mask_tokens`` compare the two."""
    mask_sequences: RatioBounds | None = None
    """[low, high]: leave out completions whose ratio pi / pi_sampler, the geometric mean over their tokens, is outside,
    such as [0.99, 1.01]: stale samples, and those of an engine that disagrees. It recomputes ``old_logprobs``."""
    mask_tokens: RatioBounds | None = None
    """[low, high]: leave out single tokens whose ratio is outside, such as [0.5, 5]; it does the same."""
    mask_truncated: bool | None = None
    """Leave out completions that ``max_tokens`` cut off: they say nothing of the answer they had come to."""
    reference: PolicyChoice | None = None
    """The policy that ``kl`` holds on to, and that algorithms compare with: ``start`` (the pipeline's), ``previous``
    (the one that the stage starts from, the default), an earlier stage, a folder or a Hub id; or one for each task."""
    kl: float | None = Field(None, gt=0)
    """Factor of a penalty on the divergence from the ``reference``, a token: exp(d) - 1 - d, d = log(pi_ref / pi)."""
    entropy: EntropyConfig | None = None
    """A term that rewards entropy, such as ``{weight: 0.001}``, or holds it, such as ``{target: 0.2}``."""
    async_: Literal[0, 1] = Field(0, alias="async")
    """1: sample the next batch while this one trains, with the policy as it was before the current update; the ratio to
    that policy and its ``clip`` correct for the one step. Uses a second core, and holds the weights twice."""
    token_budget: Annotated[int, RUNTIME] = Field(16_384, ge=1)
    """Tokens that one forward and backward pass may hold, where a group's prompt counts once; it bounds memory and
    changes no result."""
    gradient_checkpointing: Annotated[bool, RUNTIME] = False
    """Compute a layer's states again in the backward pass instead of keeping them: less memory, a third more time."""
    prompts: PromptsConfig | None = None
    """Train only on prompts within a range of pass rates, which earlier stages or a profile at the stage's start found;
    default: on all."""
    curriculum: CurriculumConfig | None = None
    """Draw prompts by weights over their pass rates, which move through the stage."""
    order: OrderConfig | None = None
    """Visit the prompts of each epoch in an order, such as ``{by: length}``; default: shuffled."""
    demonstrations: DemonstrationsConfig | None = None
    """What a stage that learns from demonstrations takes in place of the task's: correct completions of an earlier
    stage."""
    sampling: SamplingConfig | None = None
    """Replaces the pipeline's sampling options in this stage."""
    eval_every: int = Field(0, ge=0)
    """Steps between evaluations on the validation prompts, for ``until``, ``guard`` and ``handover: best``; 0: none."""
    until: Until | None = None
    """Rules that end the stage before its ``steps`` are done: switch by result, not by the clock."""
    guard: Guard | None = None
    """Rule that takes a stage that collapses back to its best checkpoint."""
    handover: Literal["best", "last"] = "last"
    """Which checkpoint the next stage starts from: the last, or the best by validation accuracy."""
    carry: list[Literal["optimizer", "critic"]] = Field(default_factory=list)
    """What the stage takes over from the one that it starts from, besides weights, tokenizer and template; the rest
    starts fresh."""
    kl_every: int = Field(10, ge=0)
    """Steps between measurements of the KL divergence to the stage's start; 0 never measures it."""
    max_skipped: int = Field(5, ge=1)
    """Updates in a row that may be skipped for a non-finite loss or gradient, and steps in a row of which no completion
    could be scored, before the stage fails."""

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, raw: Any) -> Any:
        """Add the options that the variant sets, where they are not given."""
        if not isinstance(raw, dict):
            return raw
        if raw.get("variant") == "paper" and "paper" not in cls.presets:
            raise ValueError(f"{raw.get('stage')} has no published variant: leave `variant` out")
        return {**cls.presets.get(str(raw.get("variant")), {}), **raw}

    @model_validator(mode="before")
    @classmethod
    def _clip_of_stale_batches(cls, raw: Any) -> Any:
        """A batch of an earlier policy needs the ratio, so a clip goes with it unless another was chosen."""
        stale = isinstance(raw, dict) and raw.get("async") == 1 and not cls.own_ratio
        return {**raw, "clip": STALE_CLIP} if stale and "clip" not in raw else raw

    @model_validator(mode="after")
    def _stale_batches_have_a_ratio(self) -> StageConfig:
        if self.own_ratio and self.clip is not None:
            raise ValueError(f"{self.stage} bounds a ratio of its own: leave `clip` out, and set `{self.own_ratio}`")
        if self.async_ and self.clip is None and not self.own_ratio:
            raise ValueError("`async: 1` trains on an earlier policy's completions: it needs a `clip`, not null")
        return self

    @model_validator(mode="after")
    def _minibatches_have_groups(self) -> StageConfig:
        if self.minibatches > self.prompts_per_step:
            raise ValueError(f"{self.minibatches} `minibatches` need as many groups; there are {self.prompts_per_step}")
        return self

    @property
    def masks(self) -> bool:
        """Whether tokens are left out by how far the policy is from the one that sampled them."""
        return self.mask_sequences is not None or self.mask_tokens is not None
