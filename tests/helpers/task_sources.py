"""Configurations of tasks and the files they read, for the tests of tasks."""

import json

from pydantic import TypeAdapter

from gradus.pipeline.config.task import Task


def make(**options):
    return TypeAdapter(Task).validate_python(options)


def gym(dataset="chain_sum", **options):
    return make(source="reasoning_gym", dataset=dataset, **{"size": 200, "heldout": 50, **options})


def file(path, **options):
    return make(source="file", path=path, **{"heldout": 5, **options})


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def sums(count, start=0):
    return [{"question": f"{i} + {i}?", "answer": 2 * i} for i in range(start, start + count)]
