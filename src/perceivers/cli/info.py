"""The verbs `info` and `plan`: the published models, their costs, and the attention algorithms that they would use."""

from dataclasses import asdict, fields
from typing import Annotated, Any, cast

import torch
import tyro

from perceivers.cli.tables import MEMORY, in_units, show
from perceivers.core.arguments import check_names, check_positive
from perceivers.core.fast.algorithms import Algorithm
from perceivers.core.fast.plan_report import attention_plan
from perceivers.core.memory_limits import check_given_limit
from perceivers.pretrained.hub import from_pretrained
from perceivers.pretrained.model_folder import with_schema
from perceivers.pretrained.relatives import RELATIVES
from perceivers.progress import tracked
from perceivers.runs.flops import Costs, costs
from perceivers.schema import Schema
from perceivers.schema.plain_values import to_plain
from perceivers.schema.schema_files import to_yaml
from perceivers.systems import PRESETS


def info(model: Annotated[str | None, tyro.conf.Positional] = None, /, json: bool = False) -> None:
    """List the published models with their parameters and FLOPs, and the paper's, and the models of other libraries.

    Args:
        model: Name of a published model, to show its stages, memory and schema, or of a model of another library, to
            show the settings with which it is converted; without a name all models are listed.
        json: Print as JSON.
    """
    if model is None:
        show_all(json)
    elif model in RELATIVES:
        show_relative(model, json)
    else:
        check_names("model", [model], [*PRESETS, *RELATIVES])
        show_one(model, json)


def show_all(as_json: bool) -> None:
    """Print a table with one row for each published model, and one of the models of other libraries."""
    cost_by_model = {name: costs(published.preset()) for name, published in tracked(PRESETS.items(), "counting")}
    plain = {name: _plain(name, cost) for name, cost in cost_by_model.items()}
    rows = [
        (
            name,
            f"{cost.parameters:,}",
            p.paper_parameters,
            in_units(cost.flops),
            p.paper_flops,
            "released" if p.released else "",
        )
        for (name, cost), p in zip(cost_by_model.items(), PRESETS.values(), strict=True)
    ]
    others = {name: _plain_relative(name) for name in RELATIVES}
    show(plain | others, as_json, ["model", "parameters", "paper", "FLOPs", "paper", "weights"], rows)
    if not as_json:
        lines = [(name, other["about"], other["needs"]) for name, other in others.items()]
        show(None, False, ["model", "converted from another library", "settings that its arrays do not tell"], lines)


def show_relative(name: str, as_json: bool) -> None:
    """Print the settings with which a model of another library is converted."""
    plain = _plain_relative(name)
    rows = [(setting, "" if default is None else str(default)) for setting, default in plain["settings"].items()]
    show(plain, as_json, ["setting", "default"], rows)
    if not as_json:
        print(f"{plain['about']}. Settings: {plain['needs']}.\nperceivers convert FILE DEST --model {name} --set ...")


def show_one(name: str, as_json: bool) -> None:
    """Print the stages of a model, the memory that one sample takes, and the schema."""
    preset = PRESETS[name].preset()
    cost = costs(preset)
    rows = [(stage, f"{parameters:,}", in_units(flops)) for stage, (parameters, flops) in cost.stages.items()]
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
    memory_limit: str | None = None,
    algorithm: Algorithm | None = None,
    training: bool = False,
    json: bool = False,
) -> None:
    """Show which algorithm computes each cross-attention of a model at its trained size, and what the others cost.

    Args:
        model: Name of a published model, or a model folder.
        batch_size: Number of samples in the batch.
        memory_limit: Memory that an attention may take on top of its inputs and outputs, e.g. 200MB.
        algorithm: Force this algorithm wherever it applies.
        training: Plan for a training step, with gradients.
        json: Print as JSON.
    """
    check_positive("batch_size", batch_size)
    check_given_limit(memory_limit)
    # Plan on the meta device: shapes suffice, and no weights are allocated.
    known = model in PRESETS
    built = PRESETS[model].preset().build("meta") if known else with_schema(from_pretrained(model), model).to("meta")
    raw, points = cast(Schema, built.schema).dummy_input(batch_size, torch.device("meta"))
    with torch.set_grad_enabled(training):
        plans = attention_plan(built.train(training), raw, points, memory_limit, algorithm)
    # For each attention: first the chosen algorithm, then the others by increasing work.
    rows = [
        (
            attention.name if name == attention.algorithm else "",
            f"{attention.tokens:,}" if name == attention.algorithm else "",
            f"{name}, {attention.block_size:,} at a time" if name == attention.algorithm else name,
            in_units(2 * cost.multiply_adds),
            f"{cost.work / attention.costs[attention.algorithm].work:.2f}",
            in_units(cost.bytes(attention.block_size), MEMORY),
        )
        for attention in plans
        for name, cost in sorted(
            attention.costs.items(), key=lambda item: (item[0] != attention.algorithm, item[1].work)
        )
    ]
    columns = ["attention", "tokens", "algorithm", "FLOPs", "work", "memory"]
    show([asdict(attention) for attention in plans], json, columns, rows)


def _plain_relative(name: str) -> dict[str, Any]:
    """Return what a model of another library is, and its settings with their defaults."""
    relative = RELATIVES[name]
    settings = {field.name: field.default for field in fields(relative.settings)}
    return {"about": relative.about, "needs": relative.needs, "settings": settings}


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
