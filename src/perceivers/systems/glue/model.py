"""Schemas of GLUE: a text as input; a class or a score for each task as output."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from perceivers.data.published.glue_tables import CLASSES, RATING, Task
from perceivers.modalities import Label, Numbers, Text
from perceivers.modalities.modality import Modality
from perceivers.modalities.single_query import SingleQueryModality
from perceivers.schema import Schema

Variant = Literal["shared-token", "task-tokens", "task-queries"]
"""Query of a task: a token before the text, shared or one for each task; or a trained query for each task."""


def glue_schema(tasks: Sequence[Task], text: Text, variant: Variant = "task-queries") -> Schema:
    """Return a schema with a text as input and, for each task, an output with a head of two layers with tanh."""
    prefix = {"shared-token": 1, "task-tokens": len(tasks), "task-queries": 0}[variant]
    outputs: dict[str, Modality] = {}
    for number, task in enumerate(tasks):
        query: dict[str, Any] = {"query_channels": text.channels, "hidden_channels": text.channels}
        outputs |= task_outputs(task, query | ({"of": "text", "token": number % prefix} if prefix else {}))
    return Schema({"text": replace(text, prefix=prefix)}, outputs)


def task_outputs(task: Task, query: dict[str, Any]) -> dict[str, SingleQueryModality]:
    """Return the outputs of a task: a class, a score, or both (VADER), with GLUE's metrics."""
    if task == "sts":
        return {task: Numbers(further_metrics=("pearson",), **query)}
    label = Label(classes=CLASSES[task], **query)
    if task == "vader":
        return {task: label, RATING: Numbers(further_metrics=("pearson",), **query)}
    if task == "cola":
        return {task: replace(label, further_metrics=("matthews",))}
    return {task: replace(label, further_metrics=("f1",)) if task in ("mrpc", "qqp") else label}
