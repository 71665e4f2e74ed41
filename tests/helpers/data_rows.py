"""First rows in the forms that published data sets have, written for the tests."""

from __future__ import annotations

from typing import Any

SYSTEM = {"role": "system", "content": "You are brief."}
SYSTEM_AND_USER = "Answer with a number."


def turn(role: str, content: str) -> dict[str, str]:
    """A turn of a conversation."""
    return {"role": role, "content": content}


def gsm8k(n: int) -> dict[str, Any]:
    """A school problem with its worked answer."""
    worked = f"Ann has {n} + {n} = <<{n}+{n}={2 * n}>>{2 * n} pears.\n#### {2 * n}"
    return {"question": f"Ann has {n} pears and finds as many. How many has she?", "answer": worked}


def verl(n: int) -> dict[str, Any]:
    """A row as verl's preprocessing writes it."""
    return {
        "data_source": "openai/gsm8k",
        "prompt": [turn("user", f"Ann has {n} pears and finds as many. Answer after ####.")],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": str(2 * n)},
        "extra_info": {"split": "train", "index": n},
    }


def tulu(n: int) -> dict[str, Any]:
    """A row of a mixture for supervised fine-tuning."""
    asked, said = turn("user", f"What follows {n}?"), turn("assistant", f"After {n} comes {n + 1}.")
    more = [turn("user", "And then?"), turn("assistant", f"{n + 2}")] if n % 2 else []
    return {"id": f"made_{n}", "messages": [asked, said, *more], "source": "made/flan"}


def ultrafeedback(n: int) -> dict[str, Any]:
    """A preference pair in the form of conversations, with scores."""
    asked = f"Name a number greater than {n}."
    chosen, rejected = ([turn("user", asked), turn("assistant", text)] for text in (f"{n + 1}", f"Perhaps {n - 1}?"))
    pair = {"prompt": asked, "prompt_id": f"{n:064x}", "chosen": chosen, "rejected": rejected, "messages": chosen}
    return {**pair, "score_chosen": 8.5, "score_rejected": 6.0}


def alpaca(n: int) -> dict[str, Any]:
    """An instruction, with an input in every second row."""
    return {"instruction": "Add one.", "input": str(n), "output": str(n + 1)} if n % 2 else {
        "instruction": f"Write {n}.", "input": "", "output": str(n)
    }  # fmt: skip


def sharegpt(n: int) -> dict[str, Any]:
    """A conversation with `from` and `value`."""
    turns = [("system", "You are brief."), ("human", f"What is {n} + {n}?"), ("gpt", f"{2 * n}")]
    return {"id": str(n), "conversations": [{"from": role, "value": text} for role, text in turns]}


def rlvr(n: int) -> dict[str, Any]:
    """A conversation without a completion, with what a verifier compares with."""
    return {"messages": [turn("user", f"What is {n} + 1?")], "ground_truth": str(n + 1), "dataset": "gsm8k"}


def completion(n: int) -> dict[str, Any]:
    """A conversational prompt with its completion in a column of its own."""
    return {"prompt": [SYSTEM, turn("user", f"{n}?")], "completion": [turn("assistant", f"It is {n}.")]}


def tools(n: int) -> dict[str, Any]:
    """A conversation with tools, as a table gives it: every field that any row has."""
    call = {"type": "function", "function": {"name": "add", "arguments": f'{{"a": {n}}}'}}
    turns = [
        {"role": "user", "content": f"Add {n}.", "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": str(n + 1), "tool_calls": None},
        {"role": "assistant", "content": f"{n + 1}", "tool_calls": None},
    ]
    return {"messages": turns, "tools": '[{"type": "function", "function": {"name": "add"}}]'}
