"""The options of the ablations: settings of the config, and of the schema where places are concerned."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.ablations.tasks import Task
from perceivers.core.block_config import Rotary
from perceivers.runs.recipe import Recipe
from perceivers.schema.plain_values import from_plain, to_plain

Settings = Mapping[str, Any]
"""Values by dotted field of a recipe."""

STAGES = ("encoder", "processor", "decoder")


@dataclass(frozen=True)
class Option:
    """A change of the paper's block."""

    title: str
    """Title in the tables."""
    settings: Callable[[Task], Settings]
    """Returns what changes in a task's recipe; nothing if the option has no meaning there."""


def in_all_stages(**fields: Any) -> Settings:
    """Return fields of the block in the encoder, the processor and the decoder."""
    return {f"config.{stage}.{name}": value for stage in STAGES for name, value in fields.items()}


def always(title: str, settings: Settings) -> Option:
    """Return an option that is the same in every task."""
    return Option(title, lambda task: settings)


def rotary(task: Task, values: bool = False) -> Settings:
    """Return rotary positions in all stages, latents at places; in the decoder where queries have places too."""
    if not task.axes:
        return {}
    acts = to_plain(Rotary(task.axes))
    settings: dict[str, Any] = {f"config.{stage}.rotary": {**acts, "values": values} for stage in STAGES[:2]}
    if task.asked_at:
        settings["config.decoder.rotary"] = acts
    return {**settings, "config.latents.places": [asdict(axis) for axis in task.places]}


def rotary_alone(task: Task) -> Settings:
    """Return rotary positions instead of position features."""
    return {**rotary(task), **dict.fromkeys(task.positions)} if task.axes else {}


def taken(task: Task) -> Settings:
    """Return latents taken from the tokens of an input."""
    if task.taken_from is None:
        return {}
    source, rule = task.taken_from
    return {f"config.latents.{name}": x for name, x in (("taken_from", source), ("rule", rule), ("token_map", True))}


BASE = "paper"
"""The paper's block, with which every option is compared."""

OPTIONS: dict[str, Option] = {
    BASE: always("the paper's block", {}),
    "rms": always("RMS norm", in_all_stages(norm="rms")),
    "qk-norm": always("queries and keys normed", in_all_stages(qk_norm=True)),
    "widening-4": always("MLPs 4 times as wide", in_all_stages(widening_factor=4)),
    "geglu": always("gated MLP (GEGLU)", in_all_stages(gated=True)),
    "squared-relu": always("squared ReLU", in_all_stages(activation="squared_relu")),
    "no-biases": always("no biases", in_all_stages(qkv_bias=False, output_bias=False, mlp_bias=False)),
    "cross-heads": always("4 heads in the cross-attentions", dict.fromkeys(
        ("config.encoder.num_heads", "config.decoder.num_heads"), 4)),
    "grouped": always("one head of keys and values for 4 of queries", {"config.processor.num_kv_heads": 1}),
    "layer-scale": always("layer scale 0.1", in_all_stages(layer_scale=0.1)),
    "depth-0.1": always("stochastic depth 0.1", {"config.processor.stochastic_depth": 0.1}),
    "final-norms": always("final norms", {"config.processor.final_norm": True, "config.decoder.final_norm": True}),
    "residual": always("query residual", {"config.decoder.query_residual": True}),
    "decoder-2": always("decoder of 2 layers", {"config.decoder.num_layers": 2, "config.decoder.query_residual": True}),
    "reads-2": always("2 reads, 2 layers after each", {
        "config.encoder.num_reads": 2, "config.processor.num_layers": 2, "config.processor.num_blocks": 2,
        "config.processor.share_blocks": "none", "config.encoder.share_reads": "none"}),
    "with-latents": always("reading tokens and latents at once", {"config.encoder.attend_latents": True}),
    "aligned": Option("keys aligned with queries", lambda task: in_all_stages(qk_init_gain=3.0)),
    "taken": Option("latents taken from tokens", taken),
    "rotary": Option("rotary positions, beside features", rotary),
    "rotary-alone": Option("rotary positions alone", rotary_alone),
    "rotary-values": Option("rotary positions, values turned too", lambda task: rotary(task, values=True)),
}  # fmt: skip
"""The options by name; each alone."""

TOGETHER: tuple[str, ...] = ()
"""Options that helped: together they are tried at three rates, as the paper's block is."""


def with_options(task: Task, names: tuple[str, ...]) -> Recipe | None:
    """Return a task's recipe with options; None if one of them has no meaning there and it is the only one."""
    settings: dict[str, Any] = {}
    for name in names:
        settings |= OPTIONS[name].settings(task)
    if not settings and names != (BASE,):
        return None
    plain = to_plain(task.recipe)
    for field, value in settings.items():
        *parents, name = field.split(".")
        node = plain
        for parent in parents:
            node = node[parent]
        node[name] = value
    return from_plain(Recipe, plain)
