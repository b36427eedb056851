"""Single functions against the arrays recorded from the official code: every array of units.npz, every element."""

import math
from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor, nn

from perceivers.core.attention import Mask, attend
from perceivers.core.block_config import BlockConfig
from perceivers.core.blocks import CrossAttention, SelfAttention
from perceivers.core.config import Config, LatentsConfig
from perceivers.core.decoder import LatentDecoder
from perceivers.core.latents import Latents
from perceivers.core.reading import Encoded
from perceivers.core.tokens import Segment, Tokens
from perceivers.modalities.grid import Grid
from perceivers.modalities.image import Image, Video
from perceivers.modalities.patches import depth_to_space, extract_patches, space_to_depth, surrounding_patches
from perceivers.modalities.position_encodings import Fourier, FourierPositions, GridPositions
from perceivers.modalities.queries import LearnedQuery
from reference_files import CROSS_ATTENTION, SELF_ATTENTION, block, copy_haiku, read, relative_error, under

ARRAYS = read("units")
TOLERANCE = 1e-5

# Grid, settings for each axis, tolerance at our coordinates and at the recorded ones. The official float32 phases
# reach 352 radians at 224 samples and 48,000 at 30,720, where a unit in the last place is 3e-5 and 4e-3 radians.
FOURIER = {
    "2d": ((6, 5), Fourier(num_bands=4), TOLERANCE, TOLERANCE),
    "2d_maxres": ((6, 5), Fourier(num_bands=4, max_resolution=(224, 224)), 5e-5, 5e-5),
    "2d_sine": ((6, 5), Fourier(num_bands=4, sine_only=True), TOLERANCE, TOLERANCE),
    "2d_nopos": ((6, 5), Fourier(num_bands=4, with_coordinates=False), TOLERANCE, TOLERANCE),
    "3d": ((2, 3, 4), Fourier(num_bands=3), TOLERANCE, TOLERANCE),
    "1d_audio": ((1920,), Fourier(num_bands=192, max_resolution=30720), 1.5e-2, 5e-3),
}


class Recorded(Mapping[str, Tensor]):
    """A part of the recorded arrays, which notes the arrays that no test has used yet."""

    def __init__(self, *groups: str) -> None:
        self.arrays = {key: array for key, array in ARRAYS.items() if any(belongs(key, group) for group in groups)}
        # A running mean is also recorded before its debiasing ("hidden", "counter"), which is never used.
        self.unread = {key for key in self.arrays if not key.endswith(("/hidden", "/counter"))}

    def __getitem__(self, key: str) -> Tensor:
        self.unread.discard(key)
        return self.arrays[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)


COMPARED: list[str] = []


def recordings(*groups: str) -> pytest.MarkDecorator:
    """Pass these groups to a test as `recorded`; the test must use every array of them."""
    COMPARED.extend(groups)
    return pytest.mark.parametrize("recorded", [groups], indirect=True, ids=[groups[0]])


def belongs(key: str, group: str) -> bool:
    return key == group or key.startswith(f"{group}:")


@pytest.fixture
def recorded(request: pytest.FixtureRequest) -> Iterator[Recorded]:
    arrays = Recorded(*request.param)
    assert len(arrays)
    yield arrays
    assert not arrays.unread


def load(module: nn.Module, recorded: Recorded, names: Mapping[str, str], group: str) -> nn.Module:
    """Return the module with the recorded parameters, in evaluation mode."""
    parameters, state = (under(f"{group}:{kind}:", recorded) for kind in ("param", "state"))
    copy_haiku(module, parameters, names, state)
    return module.eval()


def test_every_array_of_the_file_is_compared() -> None:
    forgotten = [key for key in ARRAYS if not any(belongs(key, group) for group in COMPARED)]
    assert forgotten == []


@recordings("attend")
def test_attend(recorded: Recorded) -> None:
    q, k, v = (recorded[f"attend:{name}"].movedim(1, 2) for name in "qkv")
    for mask, key in ((None, "out"), (Mask(pairs=recorded["attend:mask"].bool()), "out_masked")):
        attended = attend(q, k, v, mask).movedim(1, 2).flatten(2)
        assert relative_error(attended, recorded[f"attend:{key}"]) <= TOLERANCE


def test_the_recorded_mask_has_a_dead_row() -> None:
    """Otherwise the comparison would not cover queries without any key."""
    dead = ~ARRAYS["attend:mask"].bool().any(dim=-1)
    assert dead.any()
    assert (ARRAYS["attend:out_masked"][dead] == 0).all()


@recordings("fourier", "positions")
def test_every_recording_of_fourier_features_has_its_settings(recorded: Recorded) -> None:
    for kind in ("fourier", "positions"):
        assert under(f"{kind}:", recorded).keys() == FOURIER.keys()


@pytest.mark.parametrize("case", FOURIER)
def test_fourier_features(case: str) -> None:
    """On the grid, from our float64 coordinates; and in float32, at the coordinates of the official code."""
    grid, config, tolerance, tolerance_at_recorded = FOURIER[case]
    expected, coordinates = ARRAYS[f"fourier:{case}"], ARRAYS[f"positions:{case}"]
    places = GridPositions(grid)
    assert relative_error(places.coordinates().float(), coordinates) <= 1e-6
    positions = FourierPositions(len(grid), grid, config)
    assert relative_error(positions.on_grid(places).dense(torch.float32), expected) <= tolerance
    assert relative_error(positions.at(coordinates), expected) <= tolerance_at_recorded


@recordings("x4", "x5", "s2d")
def test_space_to_depth_and_back(recorded: Recorded) -> None:
    for space, depth, patch in (("x4", "s2d:4", (4, 4)), ("x5", "s2d:5", (2, 4, 4))):
        assert torch.equal(space_to_depth(recorded[space], patch), recorded[depth])
        assert torch.equal(depth_to_space(recorded[depth], patch), recorded[space])


@recordings("d2s")
def test_depth_to_space(recorded: Recorded) -> None:
    """The recording is of ones, and shows only the shape."""
    ones = torch.ones_like(ARRAYS["s2d:4"])
    assert torch.equal(depth_to_space(ones, (4, 4)), recorded["d2s:4"])


@recordings("flowpatch")
def test_patches_around_pixels(recorded: Recorded) -> None:
    frames = ARRAYS["x5"][:, :2]
    assert torch.equal(surrounding_patches(frames, 3), recorded["flowpatch"])


@recordings("extract")
def test_extracted_patches(recorded: Recorded) -> None:
    """The settings were not recorded: no others with sides up to 9, strides and rates up to 3 come near."""
    image = ARRAYS["x4"]
    valid = extract_patches(image, size=(2, 3), stride=(2, 1), padding="VALID")
    assert torch.equal(valid, recorded["extract:valid"])
    same = extract_patches(image, size=(3, 3), stride=(2, 2), rate=(2, 2), padding="SAME")
    assert torch.equal(same, recorded["extract:same"])


@recordings("down2d")
def test_convolutional_stem(recorded: Recorded) -> None:
    check_stem(recorded, "down2d", Image(size=(16, 20), patch=4, stem="conv", embed=8, positions=None))


@recordings("down2d_x2")
def test_convolutional_stem_of_two_layers(recorded: Recorded) -> None:
    check_stem(recorded, "down2d_x2", Image(size=32, patch=16, stem="conv", embed=4, positions=None))


def check_stem(recorded: Recorded, group: str, spec: Image) -> None:
    names = {}
    for layer, suffix in enumerate(["", "_1"][: round(math.log(spec.steps[0], 4))]):
        names[f"conv2_d_downsample/~/conv{suffix}"] = f"stem.convolutions.{layer}"
        names[f"conv2_d_downsample/~/batchnorm{suffix}"] = f"stem.norms.{layer}"
    adapter = load(spec.build_input(), recorded, names, group)
    tokens = adapter(recorded[f"{group}:in0"])
    expected = recorded[f"{group}:out"]
    assert tokens.grid == expected.shape[1:3]
    assert relative_error(tokens.dense(torch.float32).view_as(expected), expected) <= TOLERANCE


@recordings("up2d")
def test_upsampled_image(recorded: Recorded) -> None:
    names = {f"conv2_d_upsample/~/transp_conv_{layer + 1}": f"upsample.convolutions.{layer}" for layer in range(2)}
    check_upsample(recorded, "up2d", Image(size=(16, 20), patch=4, stem="conv"), names)


@recordings("up3d")
def test_upsampled_video(recorded: Recorded) -> None:
    """Twice as long, four times as high and wide: the last layer, which need not double time, has stride 1 there."""
    names = {f"conv3_d_upsample/conv3d_transpose_{layer}": f"upsample.convolutions.{layer}" for layer in range(2)}
    check_upsample(recorded, "up3d", Video(size=(4, 16, 20), patch=(2, 4, 4), stem="conv"), names)


def check_upsample(recorded: Recorded, group: str, spec: Grid, names: Mapping[str, str]) -> None:
    tokens = recorded[f"{group}:in0"]
    adapter = load(spec.build_output(6, {}), recorded, names, group)
    rows = tokens.flatten(1, -2)
    values = adapter(rows, Segment(content=rows, grid=tuple(tokens.shape[1:-1])))
    assert relative_error(values, recorded[f"{group}:out"]) <= TOLERANCE


@recordings("extra_pos_mlp")
def test_residual_layers_of_positions(recorded: Recorded) -> None:
    spec = Image(size=4, positions=Fourier(num_bands=2, num_residual_layers=2))
    names = {
        f"image_preprocessor/~_build_network_inputs/linear{suffix}": f"positions.residual_layers.{layer}"
        for layer, suffix in enumerate(["", "_1"])
    }
    adapter = load(spec.build_input(), recorded, names, "extra_pos_mlp")
    tokens = adapter(recorded["extra_pos_mlp:in0"]).dense(torch.float32)
    assert relative_error(tokens, recorded["extra_pos_mlp:out"]) <= TOLERANCE


@recordings("projection_decoder")
def test_average_decoder_and_head(recorded: Recorded) -> None:
    head = load(nn.Linear(8, 5), recorded, {"projection_decoder/~/logits": ""}, "projection_decoder")
    latents = Latents(recorded["projection_decoder:in0"])
    mean = LearnedQuery(1, 3).of_latents(num_latents=6, channels=8, mean=True)(Encoded.of(latents, {}), None)
    decoder = LatentDecoder(Config(LatentsConfig(num_latents=6, channels=8)), 8)
    rows = decoder(Tokens({"label": mean}), latents, {"label": head})["label"]
    assert relative_error(rows[:, 0], recorded["projection_decoder:out"]) <= TOLERANCE


@recordings("self_attention_w1")
def test_self_attention(recorded: Recorded) -> None:
    check_self_attention(recorded, "self_attention_w1", widening_factor=1)


@recordings("self_attention_w4")
def test_self_attention_with_a_wide_mlp(recorded: Recorded) -> None:
    check_self_attention(recorded, "self_attention_w4", widening_factor=4)


def check_self_attention(recorded: Recorded, group: str, widening_factor: int) -> None:
    config = BlockConfig(num_heads=2, widening_factor=widening_factor)
    layer = load(SelfAttention(8, config), recorded, block(SELF_ATTENTION, "self_attention", ""), group)
    assert relative_error(layer(recorded[f"{group}:in0"]), recorded[f"{group}:out"]) <= TOLERANCE


@recordings("cross_attention_q")
def test_cross_attention_in_the_queries_width(recorded: Recorded) -> None:
    check_cross_attention(recorded, "cross_attention_q", BlockConfig(num_heads=2, qk_channels=8))


@recordings("cross_attention_kv")
def test_cross_attention_in_the_tokens_width(recorded: Recorded) -> None:
    check_cross_attention(recorded, "cross_attention_kv", BlockConfig(num_heads=2))


@recordings("cross_attention_nores")
def test_cross_attention_without_residual(recorded: Recorded) -> None:
    config = BlockConfig(num_heads=2, qk_channels=4, v_channels=10)
    check_cross_attention(recorded, "cross_attention_nores", config, query_residual=False)


def check_cross_attention(recorded: Recorded, group: str, config: BlockConfig, query_residual: bool = True) -> None:
    layer = CrossAttention(8, 6, config, query_residual)
    layer = load(layer, recorded, block(CROSS_ATTENTION, "cross_attention", ""), group)
    queries, tokens = recorded[f"{group}:in0"], recorded[f"{group}:in1"]
    assert relative_error(layer(queries, tokens), recorded[f"{group}:out"]) <= TOLERANCE
