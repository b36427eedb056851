"""Inputs that come in parts, and states carried from window to window, for each kind of latents."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from perceivers.core.block_config import Axis, Rotary
from perceivers.core.config import (
    BottleneckConfig,
    Config,
    DecoderConfig,
    EncoderConfig,
    LatentAxis,
    LatentsConfig,
    ProcessorConfig,
)
from perceivers.core.perceiver import PerceiverIO
from perceivers.core.reading import Reading
from perceivers.modalities.label import Label
from perceivers.modalities.numbers import Numbers
from perceivers.modalities.points import Coordinates
from perceivers.modalities.pointset import PointSet
from perceivers.modalities.position_encodings import Fourier
from perceivers.modalities.series import Series
from perceivers.modalities.vectors import Vectors
from perceivers.schema import Schema
from tiers import few

pytestmark = pytest.mark.filterwarnings("ignore:.*rotary. axis .* has no effect")

B, POINTS_READ, N, D = 3, 11, 5, 14
ROTARY = Rotary((Axis("y", 0.3, 9.0),), values=True)
PLACES = (LatentAxis("y", -2.0, 2.0, 5),)
POINTS = PointSet(axes=2, channels=3, positions=Fourier(num_bands=3, spacing="octaves"), axis_names=("y", "x"))
BASE = Config(
    LatentsConfig(num_latents=N, channels=D, init_std=1.0),
    EncoderConfig(num_heads=2, rotary=ROTARY),
    ProcessorConfig(num_heads=2, num_layers=1, rotary=ROTARY),
    DecoderConfig(num_heads=2, rotary=ROTARY),
)
TAKEN = ("last", "strided", "random", "farthest")

LATENTS: dict[str, LatentsConfig] = {
    "learned": BASE.latents,
    "places": replace(BASE.latents, places=PLACES),
    "per place": replace(BASE.latents, places=PLACES, per_place=1),
    **{rule: replace(BASE.latents, taken_from="points", rule=rule, token_map=True) for rule in TAKEN},
}


def built(config: Config = BASE, conditioned: bool = False, **inputs: Any) -> PerceiverIO:
    """Return a model in evaluation, in float64, with every parameter random."""
    torch.manual_seed(0)
    inputs = {"points": POINTS, "vectors": Vectors(channels=5), **inputs}
    if conditioned:
        inputs["hours"] = Numbers(role="condition")
        stages = ("encoder", "processor", "decoder")
        config = replace(config, **{stage: replace(getattr(config, stage), conditioned=True) for stage in stages})
    model = PerceiverIO(Schema(inputs, {"label": Label(classes=3), "asked": POINTS}), config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval().double()


def raw_of(model: PerceiverIO) -> dict[str, Any]:
    """Return points, of which one sample has few, vectors, and a condition if the model has one."""
    torch.manual_seed(1)
    mask = torch.arange(POINTS_READ) < torch.tensor([[POINTS_READ], [3], [8]])
    where, values = torch.randn(B, POINTS_READ, 2), torch.randn(B, POINTS_READ, 3)
    points = {"coordinates": where.double(), "values": values.double(), "mask": mask}
    raw = {"points": points, "vectors": torch.randn(B, 7, 5, dtype=torch.float64)}
    return raw | ({"hours": torch.tensor([[1.0], [-2.0], [0.5]]).double()} if model.conditioning is not None else {})


def parts_of(raw: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the raw inputs in four parts, without the condition."""
    cut = [{name: x[:, part] for name, x in raw["points"].items()} for part in (slice(0, 4), slice(4, None))]
    return [*({"points": part} for part in cut), {"vectors": raw["vectors"][:, 2:]}, {"vectors": raw["vectors"][:, :2]}]


def close(one: Tensor, two: Tensor) -> None:
    torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-11)


def asked(model: PerceiverIO, encoded: Any) -> Tensor:
    """Return both outputs, flat."""
    where = {"asked": Coordinates(torch.linspace(-1, 1, 14, dtype=torch.float64).view(7, 2))}
    return torch.cat([x.flatten() for x in model.decode(encoded, where).values()])


# Parts.

OPTIONS: dict[str, Callable[[Config], Config]] = {
    "": lambda config: config,
    "attend_latents": lambda config: replace(config, encoder=replace(config.encoder, attend_latents=True)),
    "bottleneck": lambda config: replace(config, bottleneck=BottleneckConfig(channels=3)),
}


ALL = itertools.product(LATENTS, (False, True), OPTIONS)
FAST = [
    ("learned", False, ""),
    ("per place", True, ""),
    ("last", True, "attend_latents"),
    ("random", False, "bottleneck"),
]


@pytest.mark.parametrize(("kind", "conditioned", "option"), few(ALL, [*FAST, ("farthest", True, "")]))
def test_parts_are_the_whole(kind: str, conditioned: bool, option: str) -> None:
    model = built(OPTIONS[option](replace(BASE, latents=LATENTS[kind])), conditioned)
    raw = raw_of(model)
    whole = model.encode(raw)
    needed = conditioned or kind in TAKEN
    start = model.start(raw) if needed else None
    for algorithm in (None, "dense", "projected"):
        encoded = model.encode(iter(parts_of(raw)), algorithm=algorithm, latents=start)
        close(encoded.latents, whole.latents)
        close(asked(model, encoded), asked(model, whole))
    # Readings of the parts add up in any order; both ways in, the start is the same one, or an equal one.
    readings = [model.read(part, start=model.start(raw) if needed else None) for part in reversed(parts_of(raw))]
    close(model.process(sum(readings, Reading())).latents, whole.latents)
    assert (sum(readings, Reading()).start is None) == (not needed)


@pytest.mark.parametrize("kind", ["learned", *TAKEN])
def test_parts_by_given_latents(kind: str) -> None:
    """Latents that the caller gives, as vectors or as numbers of tokens."""
    model = built(replace(BASE, latents=LATENTS[kind]))
    raw = raw_of(model)
    given: Any = torch.randn(B, N, D, dtype=torch.float64)
    if kind in TAKEN:
        given = torch.tensor([[2, 0, 1, 2, 0]]).expand(B, -1)
    whole = model.encode(raw, latents=given)
    assert not torch.allclose(whole.latents, model.encode(raw).latents, rtol=1e-3)
    close(model.encode(iter(parts_of(raw)), latents=model.start(raw, given)).latents, whole.latents)
    if kind == "learned":
        close(model.encode(iter(parts_of(raw)), latents=given).latents, whole.latents)


@pytest.mark.parametrize("kind", TAKEN)
def test_parts_without_the_start_are_refused(kind: str) -> None:
    model = built(replace(BASE, latents=LATENTS[kind]))
    raw = raw_of(model)
    with pytest.raises(ValueError, match=r"give every read start=model\.start\(raw\)"):
        model.encode(iter(parts_of(raw)))
    with pytest.raises(ValueError, match=r"taken from input 'points': give it, or start=model\.start\(raw\)"):
        model.encode(iter(reversed(parts_of(raw))))
    with pytest.raises(ValueError, match=r"taken from input 'points': give it, or start=model\.start\(raw\)"):
        model.read({"vectors": raw["vectors"]})


def test_parts_without_the_condition_are_refused() -> None:
    model = built(conditioned=True)
    raw = raw_of(model)
    with pytest.raises(
        ValueError, match=r"parts of inputs, and a condition: give latents=model\.start\(raw, latents\)"
    ):
        model.encode(iter(parts_of(raw)), latents=torch.zeros(B, N, D))
    parts = parts_of(raw)
    parts[0]["hours"] = raw["hours"]
    with pytest.raises(ValueError, match=r"give every read start=model\.start\(raw\)"):
        model.encode(iter(parts))


def test_readings_by_other_latents_do_not_add_up() -> None:
    model = built(replace(BASE, latents=LATENTS["last"]), conditioned=True)
    raw = raw_of(model)
    first, second = parts_of(raw)[:2]
    start = model.start(raw)
    read = model.read(first, start=start)
    for other in (
        model.start(raw | {"hours": raw["hours"] + 1}),
        model.start(raw, torch.zeros(B, N, dtype=torch.long)),
        model.start(second | {"hours": raw["hours"]}),
    ):
        with pytest.raises(ValueError, match="readings by different latents or conditions"):
            read + model.read(second, start=other)
    assert (read + model.read(second, start=model.start(raw))).start is start
    own = built(replace(BASE, latents=LATENTS["learned"]))
    with pytest.raises(ValueError, match="readings by different latents or conditions"):
        own.read(first) + own.read(second, start=own.start(first, torch.zeros(1, N, D)))


def test_parts_have_the_gradients_of_the_whole() -> None:
    model = built(replace(BASE, latents=LATENTS["farthest"]), conditioned=True)
    raw = raw_of(model)
    found = []
    for parts in (False, True):
        model.zero_grad()
        encoded = model.encode(iter(parts_of(raw)), latents=model.start(raw)) if parts else model.encode(raw)
        asked(model, encoded).square().sum().backward()
        found.append({name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert any("latent_map" in name for name in found[0])
    assert any("conditioning" in name for name in found[0])
    for name, gradient in found[0].items():
        close(found[1][name], gradient)


# States carried on.


def stream() -> tuple[PerceiverIO, list[Tensor]]:
    """Return a model that reads windows of a series, and four windows."""
    torch.manual_seed(0)
    config = replace(BASE, latents=replace(BASE.latents, places=(LatentAxis("y", 0.0, 13.0, 5),)))
    series = Series(size=13, channels=2, axis_names=("y",), positions=None)
    model = PerceiverIO(Schema({"series": series}, {"state": Numbers(count=2)}), config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval().double(), [*torch.randn(B, 52, 2, dtype=torch.float64).split(13, 1)]


def test_a_state_is_carried_through_windows() -> None:
    """The Encoded of a window, its latents, or what `start` makes of them are the same state."""
    model, windows = stream()
    encoded, states = None, []
    for window in windows:
        encoded = model.encode(window, latents=encoded)
        states.append(encoded.latents)
    assert encoded is not None
    latents = model.trunk.latents.expand(B, -1, -1)
    for window, state in zip(windows, states, strict=True):
        latents = model.process(model.read(window, start=model.start(window, latents))).latents
        close(latents, state)
    assert not torch.allclose(states[-1], model.encode(windows[-1]).latents, rtol=1e-3)
    close(model(windows[-1], latents=states[-2])["state"], model.decode(encoded)["state"])
    # The latents keep their places.
    coordinates = encoded.around.coordinates
    assert coordinates["y"].tolist() == model.start(windows[0]).coordinates["y"].tolist()


def test_gradients_flow_back_through_windows() -> None:
    model, windows = stream()
    first = windows[0].requires_grad_()
    for detached in (False, True):
        encoded = model.encode(first)
        for window in windows[1:]:
            latents = encoded.latents.detach() if detached else encoded
            encoded = model.encode(window, latents=latents)
        (found,) = torch.autograd.grad(model.decode(encoded)["state"].sum(), first, allow_unused=True)
        assert (found is None) == detached
        assert detached or bool(found.abs().amax((1, 2)).gt(1e-12).all())


def test_windows_in_parts_carry_the_state_on() -> None:
    model, windows = stream()
    previous = model.encode(windows[0])
    whole = model.encode({"series": windows[1]}, latents=previous)
    start = model.start({"series": windows[1]}, previous)
    close(model.process(model.read({"series": windows[1]}, start=start)).latents, whole.latents)
    close(model.encode(iter([{"series": windows[1]}]), latents=previous).latents, whole.latents)


def test_taken_latents_carry_on_without_their_input() -> None:
    model = built(replace(BASE, latents=LATENTS["farthest"]))
    raw = raw_of(model)
    later = model.encode({"vectors": raw["vectors"]}, latents=model.encode(raw))
    assert later.latents.isfinite().all()


def test_a_state_keeps_its_places_and_its_mask() -> None:
    """Latents that were taken from few points carry on where these were, and those that do not exist stay absent."""
    model = built(replace(BASE, latents=LATENTS["farthest"]))
    raw = raw_of(model)
    first = model.encode(raw)
    previous = replace(first, around=replace(first.around, mask=torch.arange(N)[None].expand(B, -1) < N - 2))
    start = model.start(raw, previous)
    assert start.coordinates is previous.around.coordinates
    assert start.mask is previous.around.mask
    assert not torch.equal(
        model.encode(raw, latents=previous).latents, model.encode(raw, latents=first.latents).latents
    )


def test_latents_of_another_shape_are_refused() -> None:
    model = built()
    raw = raw_of(model)
    for given, message in (
        (torch.zeros(B, N + 1, D), rf"latents of shape \({B}, {N + 1}, {D}\) .*, expected vectors \[B, {N}, {D}\]"),
        (torch.zeros(B, 2, N, D), rf"expected vectors \[B, {N}, {D}\]"),
        (torch.zeros(B, N, dtype=torch.long), r"latents by token numbers need latents\.taken_from"),
        ("previous", "argument 'latents': values of type <U8, expected real numbers"),
        (torch.zeros(B + 1, N, D), "as many samples, or of one for all: latents has 4 samples, points has 3"),
    ):
        with pytest.raises(ValueError, match=message):
            model.encode(raw, latents=given)
    taken = built(replace(BASE, latents=LATENTS["last"]))
    for index, message in (
        (
            torch.full((B, N), POINTS_READ),
            f"latents: number {POINTS_READ} is outside the 11 tokens of 'points'",
        ),
        (torch.full((B, N), -1), "-1 is outside the 11 tokens of 'points', from 0"),
        (torch.zeros(B, 2, dtype=torch.long), rf"shape \({B}, 2\) .*, expected numbers \[B, {N}\] of tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            taken.encode(raw, latents=index)
