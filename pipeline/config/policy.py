"""Options of the policy: an existing model or a new one, its tokenizer, its adapters and its device."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from gradus.pipeline.config.options import RUNTIME, Options

RESERVED = {
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "max_length", "messages",
    "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "strftime_now", "tokenize",
    "tokenizer_kwargs", "truncation",
}  # fmt: skip
"""Arguments of a chat template, and of the function that applies it, which are not the user's."""


def _unreserved(arguments: dict[str, Any]) -> dict[str, Any]:
    if reserved := sorted(RESERVED & arguments.keys()):
        raise ValueError(f"`template_args` cannot say `{reserved[0]}`, which is decided for each prompt")
    return arguments


TemplateArguments = Annotated[dict[str, Any], AfterValidator(_unreserved)]
"""Arguments of a chat template."""


class TokenizerConfig(Options):
    """The tokenizer trained on the task's own text when a policy is created from scratch."""

    vocabulary: int = Field(512, ge=64)
    """Upper bound of the vocabulary; digits and signs are single tokens, words that occur often become one."""


class LoraConfig(Options):
    """Low-rank adapters, which train instead of the weights."""

    rank: int = Field(16, ge=1)
    """Columns of an adapter's two matrices."""
    alpha: int = Field(32, gt=0)
    """What an adapter adds is multiplied by alpha / rank."""
    targets: Literal["auto"] | Annotated[list[str], Field(min_length=1)] = "auto"
    """Names of the linear layers that get one, such as ``[q_proj, v_proj]``; auto: all but the head."""


class PolicyConfig(Options):
    """The causal language model that is trained."""

    path: str | None = None
    """A Hub id such as ``Qwen/Qwen3-0.6B`` or a local Hugging Face folder. Give this or ``architecture``."""
    revision: str | None = None
    """Branch, tag or commit of a Hub id."""
    architecture: dict[str, Any] | None = None
    """Create the policy from scratch: ``model_type`` plus any option of that transformers configuration."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """Only for ``architecture``: how the tokenizer is trained."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights in memory; auto: float32, so that small updates are not rounded away (see ``autocast``)."""
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], RUNTIME] = "auto"
    """Where to compute; auto: cuda, then mps, then cpu."""
    attention: Annotated[Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3"], RUNTIME] = "auto"
    """Attention implementation; auto: the one transformers prefers for the model."""
    autocast: Literal["auto", "off", "bfloat16"] = "auto"
    """Type of the learner's matrix products; auto: bfloat16 on cuda, off elsewhere."""
    lora: LoraConfig | None = None
    """Train low-rank adapters; each stage begins with fresh ones and hands over weights that they are merged into."""
    template: Literal["auto", "chat", "plain"] = "auto"
    """Wrap questions in the tokenizer's chat template, or in ``plain_template``; auto: chat where there is one."""
    plain_template: str = "{question}\n"
    """Text around a question when no chat template is used; must contain ``{question}``."""
    system: str | None = None
    """What the system turn says that the chat template puts before each question; none by default."""
    template_args: TemplateArguments = Field(default_factory=dict)
    """Arguments of the chat template, such as ``{enable_thinking: false}``; ``tools`` are given to it as such."""
    eos: str | Annotated[list[str], Field(min_length=1)] | None = None
    """The token that ends an answer, or several, such as ``<|im_end|>``: training appends the first. Default: the
    special token that the chat template writes behind an answer, and those that the model's own files name."""
    special_tokens_in_questions: bool = False
    """Whether the text of a special token in a question, such as ``<|im_end|>``, becomes that token. As text, whoever
    writes questions cannot end the user's turn and begin another. A run that an earlier version began keeps tokens."""
    threads: Annotated[int | None, RUNTIME] = Field(None, ge=1)
    """CPU threads of each training process; default: their share of one less than there are cores, because verifiers,
    uploads and the loopback server need one too, and a thread that waits for its core holds up all the others."""
    deterministic: Annotated[bool, RUNTIME] = False
    """On a GPU, use PyTorch's deterministic algorithms, so that the same run gives the same bits; slower. On a CPU it
    does so anyway."""
    trust_remote_code: Annotated[bool, RUNTIME] = False
    """Run Python code that comes with the model. Only for models whose code you have read."""

    @model_validator(mode="after")
    def _one_source(self) -> PolicyConfig:
        if (self.path is None) == (self.architecture is None):
            raise ValueError("give exactly one of `path` (an existing model) and `architecture` (a new one)")
        if self.architecture is not None and not isinstance(self.architecture.get("model_type"), str):
            raise ValueError("`architecture` needs a `model_type`, for example `llama`")
        chat = {"system": self.system is not None, "template_args": bool(self.template_args)}
        if self.architecture is not None or self.template == "plain":
            for option in (name for name, given in chat.items() if given):
                raise ValueError(f"`{option}` is for a chat template, and this policy has a plain one: leave it out")
        if self.architecture is not None and self.eos is not None:
            raise ValueError("`eos` is for an existing model; a new one gets its own end-of-sequence token")
        if "{question}" not in self.plain_template:
            raise ValueError("`plain_template` must contain {question}")
        return self
