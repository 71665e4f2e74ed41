"""Answers as text, and metadata that are restored without a change."""

import json
from fractions import Fraction

import numpy as np
import pytest

from gradus.pipeline.tasks.metadata import as_text, decode, encode


def test_metadata_comes_back_unchanged():
    metadata = {
        "tuple": ((1, 2), [3, (4,)]),
        "sets": [{3, 1}, frozenset({"a"}), set()],
        "keys": {0: "zero", (1, 2): {"$set": [1]}},
        "numbers": [Fraction(1, 3), 1 + 2j, float("inf"), 10**30, True, None],
    }
    text = encode(metadata)
    assert decode(text) == metadata and json.loads(text)
    assert decode(encode({"n": np.int64(3), "f": np.float64(0.5), "a": np.eye(2)})) == {
        "n": 3, "f": 0.5, "a": [[1.0, 0.0], [0.0, 1.0]],
    }  # fmt: skip
    with pytest.raises(TypeError, match="object"):
        encode({"x": object()})


@pytest.mark.parametrize(
    ("value", "text"), [(372, "372"), (372.0, "372"), (0.25, "0.25"), (True, "true"), ("7 ", "7 ")]
)
def test_answers_as_text(value, text):
    assert as_text(value) == text
