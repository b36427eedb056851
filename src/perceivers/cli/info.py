"""The verbs `info` and `plan`: which models there are, what they cost, and how they would be computed."""

from dataclasses import asdict
from typing import Annotated, Any, cast

import torch
import tyro

from perceivers.cli.tables import MEMORY, in_units, show
from perceivers.core.arguments import check_names, check_positive
from perceivers.core.fast.algorithms import Algorithm
from perceivers.core.fast.plan_report import attention_plan
from perceivers.pretrained.hub import from_pretrained
from perceivers.progress import tracked
from perceivers.runs.flops import Costs, costs
from perceivers.schema import Schema
from perceivers.schema.plain_values import to_plain
from perceivers.schema.schema_files import to_yaml
from perceivers.systems import PRESETS


def info(model: Annotated[str | None, tyro.conf.Positional] = None, /, json: bool = False) -> None:
    """Published models with parameters and operations beside the paper's; of one model also stages, memory and schema.

    Args:
        model: Name of a published model; without it all are listed.
        json: Print as JSON.
    """
    if model is None:
        show_all(json)
    else:
        check_names("model", [model], PRESETS)
        show_one(model, json)


def show_all(as_json: bool) -> None:
    """A line for each model."""
    counted = {name: costs(published.preset()) for name, published in tracked(PRESETS.items(), "counting")}
    plain = {name: _plain(name, cost) for name, cost in counted.items()}
    rows = [
        (
            name,
            f"{cost.parameters:,}",
            p.paper_parameters,
            in_units(cost.flops),
            p.paper_flops,
            "released" if p.released else "",
        )
        for (name, cost), p in zip(counted.items(), PRESETS.values(), strict=True)
    ]
    show(plain, as_json, ["model", "parameters", "paper", "FLOPs", "paper", "weights"], rows)


def show_one(name: str, as_json: bool) -> None:
    """The stages of a model, what memory a sample takes, and its schema."""
    preset = PRESETS[name].preset()
    cost = costs(preset)
    rows = [(stage, f"{numbers:,}", in_units(flops)) for stage, (numbers, flops) in cost.stages.items()]
    rows.append(("all", f"{cost.parameters:,}", in_units(cost.flops)))
    plain = {**_plain(name, cost), "stages": cost.stages, "schema": to_plain(preset.schema)}
    show(plain, as_json, ["stage", "parameters", "FLOPs of a sample"], rows)
    if not as_json:
        print(f"Memory of a sample, float32 on a CPU, weights included: {in_units(cost.peak_bytes, MEMORY)}\n")
        print(to_yaml(preset.schema))


def plan(
    model: Annotated[str, tyro.conf.Positional],
    /,
    batch_size: int = 1,
    memory_limit: int | None = None,
    algorithm: Algorithm | None = None,
    training: bool = False,
    json: bool = False,
) -> None:
    """Show which algorithm each cross-attention of a model takes on its trained size, and what the others would cost.

    Args:
        model: Name of a published model, or a model folder.
        batch_size: Samples.
        memory_limit: Megabytes that an attention may take beside its inputs and outputs.
        algorithm: Algorithm of every attention that it is possible for.
        training: With gradients.
        json: Print as JSON.
    """
    check_positive("batch_size", batch_size)
    built = PRESETS[model].preset().build("meta") if model in PRESETS else from_pretrained(model).to("meta")
    inputs = cast(Schema, built.schema).inputs
    raw = {name: spec.dummy_input(batch_size, torch.device("meta")) for name, spec in inputs.items()}
    limit = None if memory_limit is None else memory_limit * 1_000_000
    with torch.set_grad_enabled(training):
        found = attention_plan(built.train(training), raw, memory_limit=limit, algorithm=algorithm)
    rows = [
        (
            row.name if name == row.algorithm else "",
            f"{row.tokens:,}" if name == row.algorithm else "",
            f"{name}, {row.block_size:,} at a time" if name == row.algorithm else name,
            in_units(2 * cost.multiply_adds),
            f"{cost.work / row.costs[row.algorithm].work:.2f}",
            in_units(cost.bytes(row.block_size), MEMORY),
        )
        for row in found
        for name, cost in sorted(row.costs.items(), key=lambda item: (item[0] != row.algorithm, item[1].work))
    ]
    show([asdict(row) for row in found], json, ["attention", "tokens", "algorithm", "FLOPs", "work", "memory"], rows)


def _plain(name: str, cost: Costs) -> dict[str, Any]:
    published = PRESETS[name]
    return {
        "parameters": cost.parameters,
        "paper_parameters": published.paper_parameters,
        "flops": cost.flops,
        "paper_flops": published.paper_flops,
        "peak_bytes": cost.peak_bytes,
        "released": published.released,
    }
