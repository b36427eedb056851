"""The verb `info`: what models there are, and what they cost."""

from typing import Annotated, Any

import tyro

from perceivers.cli.tables import MEMORY, in_units, show
from perceivers.core.joining import check_names
from perceivers.schema import to_plain, to_yaml
from perceivers.tasks.costs import Costs, costs
from perceivers.tasks.presets import PRESETS
from perceivers.training.progress import progress_bar


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
    counted: dict[str, Costs] = {}
    with progress_bar() as progress:
        task = progress.add_task("counting", total=len(PRESETS), note="")
        for name, published in PRESETS.items():
            progress.update(task, note=name)
            counted[name] = costs(published.preset())
            progress.advance(task)
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
