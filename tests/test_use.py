"""Models in use on arrays and on files: tiny random ones, whose results are compared with direct calls."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cross_cases import watched_blocks
from perceivers import (
    Audio,
    Config,
    DecoderConfig,
    EncoderConfig,
    Flow,
    Fourier,
    FramePair,
    Image,
    Label,
    LatentsConfig,
    PerceiverIO,
    ProcessorConfig,
    Schema,
    Text,
    Video,
    from_pretrained,
    save_pretrained,
)
from perceivers.media.audio_files import write_audio
from perceivers.media.flow_files import read_flow
from perceivers.media.image_files import write_image
from perceivers.media.resampling import imagenet_crop
from perceivers.media.standard_clips import standard_frames
from perceivers.media.video_files import Clip, read_video, write_video
from perceivers.systems.imagenet.inference import classify
from perceivers.systems.language.inference import best_sequences, fill_mask, masked_ids, runs
from perceivers.systems.multimodal.inference import autoencode
from perceivers.systems.optical_flow.inference import blend_weights, estimate_flow, tile_origins

SMALL = Config(
    LatentsConfig(num_latents=5, channels=8),
    EncoderConfig(channel_alignment="pad"),
    ProcessorConfig(num_heads=2, num_layers=1),
    DecoderConfig(channel_alignment="pad"),
)
POSITIONS = Fourier(num_bands=3)


def build(inputs, outputs):
    """Return a model with random heads too: some start at zero, which would conceal everything."""
    torch.manual_seed(0)
    model = PerceiverIO(Schema(inputs, outputs), SMALL).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def text_model():
    text = Text(length=40, vocab_size=262, channels=12)
    return build(
        {"text": text}, {"restored": Text(key="text", of="text", length=40, vocab_size=262, query_channels=12)}
    )


@pytest.fixture(scope="module")
def image_model():
    image = Image(size=13, positions=POSITIONS, mean=(100.0,), std=(50.0,))
    return build({"image": image}, {"label": Label(classes=("ant", "bee", "cat"), query_channels=7)})


@pytest.fixture(scope="module")
def flow_model():
    return build({"frames": FramePair(size=(29, 37), embed=5, positions=POSITIONS)}, {"flow": Flow(of="frames")})


@pytest.fixture(scope="module")
def film_model():
    video = Video(size=(4, 12, 12), patch=(1, 4, 4), positions=POSITIONS)
    audio = Audio(size=7680, patch=16, positions=POSITIONS)
    label = Label(classes=3, query_channels=7, mask_prob=1.0, mask_at_eval=True)
    outputs = {
        "audio": audio,
        "video": Video(size=(4, 12, 12), positions=POSITIONS),
        "label": Label(3, query_channels=7),
    }
    return build({"audio": audio, "video": video, "label": label}, outputs)


@pytest.fixture(scope="module")
def clip():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (9, 20, 26, 3), dtype=np.uint8)
    return Clip(frames, 25.0, rng.uniform(-0.5, 0.5, (17280, 2)).astype(np.float32), 48000)


# Language.


def test_marks_and_ranges_mask_the_same_bytes(text_model):
    tokenizer_ids, masked = masked_ids(*_tokenizer(), "ab[MASK][MASK]e", ())
    by_range, masked_too = masked_ids(*_tokenizer(), "abcde", [(2, 4)])
    np.testing.assert_array_equal(tokenizer_ids, by_range)
    np.testing.assert_array_equal(masked, masked_too)
    assert fill_mask(text_model, "ab[MASK][MASK]e") == fill_mask(text_model, "abcde", [(2, 4)])


def _tokenizer():
    from perceivers.modalities.tokenizers import tokenizer_of

    return (tokenizer_of("bytes"),)


def test_each_run_is_filled_by_itself(text_model):
    both = fill_mask(text_model, "[MASK]bc[MASK][MASK]")
    assert [(f.start, f.stop) for f in both] == [(0, 1), (3, 5)]
    assert all(len(f.candidates) == 5 for f in both)
    probabilities = [p for _, p in both[1].candidates]
    assert probabilities == sorted(probabilities, reverse=True)


def test_best_sequences_are_the_best_of_all():
    table = torch.rand(3, 4, dtype=torch.float64).softmax(-1)
    every = {t: float(np.prod([table[i, v] for i, v in enumerate(t)])) for t in itertools.product(range(4), repeat=3)}
    best = sorted(every.items(), key=lambda pair: -pair[1])[:6]
    found = best_sequences(table, 6)
    assert [tuple(tokens) for tokens, _ in found] == [tokens for tokens, _ in best]
    np.testing.assert_allclose([p for _, p in found], [p for _, p in best])


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_runs_are_what_is_true(masked):
    rebuilt = np.zeros(len(masked), bool)
    spans = runs(np.array(masked))
    for start, stop in spans:
        rebuilt[start:stop] = True
    np.testing.assert_array_equal(rebuilt, masked)
    assert all(stop < start for (_, stop), (start, _) in itertools.pairwise(spans))


@pytest.mark.parametrize(("text", "ranges", "message"), [("abc", [], "nothing is masked"), ("abc", [(2, 9)], "2:9")])
def test_wrong_masks_are_errors(text_model, text, ranges, message):
    with pytest.raises(ValueError, match=message):
        fill_mask(text_model, text, ranges)


# Pictures.


def test_classes_are_those_of_the_cropped_picture(image_model):
    image = np.random.default_rng(0).integers(0, 256, (40, 31, 3), dtype=np.uint8)
    (found,) = classify(image_model, [image], num_classes=2)
    logits = image_model(torch.from_numpy(imagenet_crop(image, 13))[None])["label"][0]
    expected = sorted(
        zip(("ant", "bee", "cat"), logits.double().softmax(-1).tolist(), strict=True), key=lambda p: -p[1]
    )
    assert [name for name, _ in found] == [name for name, _ in expected[:2]]
    np.testing.assert_allclose([p for _, p in found], [p for _, p in expected[:2]])


# Flow.


@given(st.integers(21, 400), st.integers(1, 3000))
def test_tiles_cover_exactly_and_never_repeat(tile, beyond):
    length = tile + beyond - 1
    origins = tile_origins(length, tile)
    assert origins == sorted(set(origins))
    assert origins[0] == 0
    assert origins[-1] + tile == length
    assert all(b - a <= tile - 20 for a, b in itertools.pairwise(origins))


def test_tiles_are_the_official_ones_for_sintel():
    """436 x 1024 in tiles of 368 x 496: the six of the official notebook."""
    assert tile_origins(436, 368) == [0, 68]
    assert tile_origins(1024, 496) == [0, 476, 528]


def test_blend_weights_by_hand():
    expected = [[1, 1, 1, 1], [1, 2, 2, 1], [1, 1, 1, 1]]
    np.testing.assert_array_equal(blend_weights(3, 4)[..., 0], expected)


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (2, 41, 53, 3), dtype=np.uint8)


def test_one_tile_is_one_forward_pass(flow_model, frames):
    first, second = frames[:, :29, :37]
    raw = torch.from_numpy(np.stack([first, second]))[None].float() / 255 * 2 - 1
    expected = flow_model({"frames": raw})["flow"][0].detach().numpy()
    np.testing.assert_allclose(estimate_flow(flow_model, first, second), expected, rtol=1e-4, atol=1e-5)


def test_tiles_are_blended_by_their_distance_from_the_border(flow_model, frames):
    flow = estimate_flow(flow_model, *frames)
    assert flow.shape == (41, 53, 2)
    top_left = estimate_flow(flow_model, *frames[:, :29, :37])
    np.testing.assert_allclose(flow[:9, :16], top_left[:9, :16], rtol=1e-4, atol=1e-5)  # only one tile covers these


def test_frames_smaller_than_a_tile_are_padded_and_cut(flow_model, frames):
    """Their last rows and columns are repeated."""
    flow = estimate_flow(flow_model, *frames[:, :17, :19])
    padded = np.pad(frames[:, :17, :19], ((0, 0), (0, 12), (0, 18), (0, 0)), mode="edge")
    np.testing.assert_allclose(flow, estimate_flow(flow_model, *padded)[:17, :19], rtol=1e-5, atol=1e-6)


def test_frames_of_different_sizes_are_an_error(flow_model, frames):
    with pytest.raises(ValueError, match="different sizes"):
        estimate_flow(flow_model, frames[0], frames[1, :30])


# Films.


def test_memory_changes_nothing_but_memory(film_model, clip, monkeypatch):
    roomy, seen = autoencode(film_model, clip), watched_blocks(monkeypatch)
    film_model.memory_limit = 1 << 19
    tight = autoencode(film_model, clip)
    assert max(num_blocks for _, num_blocks in seen) > 1
    assert np.abs(roomy.clip.frames.astype(int) - tight.clip.frames).max() <= 1
    np.testing.assert_allclose(roomy.clip.sound, tight.clip.sound, atol=1e-5)
    assert [name for name, _ in roomy.classes] == [name for name, _ in tight.classes]


def test_a_reconstruction_is_as_long_as_the_clip(film_model, clip):
    rebuilt = autoencode(film_model, clip).clip
    assert rebuilt.frames.shape == (9, 12, 12, 3)
    assert (rebuilt.fps, rebuilt.rate) == (25.0, 48000)
    assert rebuilt.sound.shape == (17280, 1)


def test_a_silent_film_is_heard_as_silence(film_model, clip):
    silent = Clip(clip.frames, 25.0)
    quiet = Clip(clip.frames, 25.0, np.zeros_like(clip.sound), 48000)
    one, other = autoencode(film_model, silent).clip, autoencode(film_model, quiet).clip
    np.testing.assert_array_equal(one.frames, other.frames)


def test_other_rates_are_brought_to_25_frames(clip):
    assert len(standard_frames(Clip(clip.frames, 12.5), 8)) == 18
    assert len(standard_frames(Clip(clip.frames[:1], 25.0), 8)) == 1


# The command.


@pytest.fixture(scope="module")
def folder(tmp_path_factory, text_model, image_model, flow_model, film_model):
    root = tmp_path_factory.mktemp("models")
    for name, model in (("text", text_model), ("image", image_model), ("flow", flow_model), ("film", film_model)):
        save_pretrained(model, root / name)
    return root


def test_a_saved_model_is_the_same(folder, image_model):
    raw = torch.rand(2, 13, 13, 3)
    assert torch.equal(from_pretrained(folder / "image")(raw)["label"], image_model(raw)["label"])


def test_fill_mask_prints_candidates(command, folder, text_model):
    code, out, _ = command("fill-mask", "ab[MASK]d", "--model", folder / "text", "--json")
    assert code == 0
    (filled,) = json.loads(out)
    (expected,) = fill_mask(text_model, "ab[MASK]d")
    assert filled["candidates"] == [list(pair) for pair in expected.candidates]


def test_classify_prints_classes(command, folder, tmp_path):
    picture = write_image(tmp_path / "a.png", np.zeros((20, 20, 3), np.uint8))
    code, out, _ = command("classify", picture, "--model", folder / "image", "--json")
    assert code == 0
    assert {name for name, _ in json.loads(out)[str(picture)]} == {"ant", "bee", "cat"}


def test_flow_writes_field_and_colours(command, folder, tmp_path, flow_model, frames):
    paths = [write_image(tmp_path / f"{n}.png", frame) for n, frame in enumerate(frames)]
    for suffix in ("flo", "png"):
        out = tmp_path / f"field.{suffix}"
        assert command("flow", *paths, "--out", out, "--model", folder / "flow")[0] == 0
        np.testing.assert_allclose(read_flow(out), estimate_flow(flow_model, *frames), atol=1 / 64)
        assert (tmp_path / "field.colours.png").exists()


def test_flow_of_a_film_is_a_film(command, folder, tmp_path, clip):
    film = write_video(tmp_path / "film.mp4", clip)
    assert command("flow", film, "--out", tmp_path / "flow.mp4", "--model", folder / "flow")[0] == 0
    assert read_video(tmp_path / "flow.mp4").frames.shape == (8, 20, 26, 3)


def test_autoencode_writes_a_film_with_sound(command, folder, tmp_path, clip):
    film = write_video(tmp_path / "film.mp4", clip)
    code, out, _ = command("autoencode", film, "--out", tmp_path / "again.mp4", "--model", folder / "film", "--json")
    assert code == 0
    assert len(json.loads(out)) == 3
    again = read_video(tmp_path / "again.mp4")
    assert again.frames.shape == (9, 12, 12, 3)
    assert again.sound is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fill-mask", "a[MASK]"], "give --model FOLDER, or --random-weights SEED"),
        (["fill-mask", "a[MASK]", "--model", "nowhere"], "no such folder, and not a hub repository"),
        (["fill-mask", "a[MASK]", "--model", "{models}/image"], "the model has no Text, only image (Image)"),
        (["fill-mask", "abc", "--ranges", "1-2", "--model", "{models}/text"], "'1-2' must be start:stop"),
        (["fill-mask", "x" * 41 + "[MASK]", "--model", "{models}/text"], "42 tokens are more than length = 40"),
        (["classify", "--model", "{models}/image"], "name at least one picture"),
        (["classify", "none.png", "--model", "{models}/image"], "none.png"),
        (["classify", "{files}/text.png", "--model", "{models}/image"], "text.png"),
        (["flow", "{files}/a.png", "{files}/b.png", "--out", "f.jpg", "--model", "{models}/flow"], "as .flo or .png"),
        (["flow", "{files}/a.png", "{files}/b.png", "--out", "f.flo", "--model", "{models}/flow"], "different sizes"),
        (
            ["fill-mask", "a[MASK]", "--top", "0", "--model", "{models}/text"],
            "top = 0 must be a whole number, at least 1",
        ),
        (["classify", "{files}/a.png", "--top", "-1", "--model", "{models}/image"], "top = -1 must be a whole number"),
        (
            ["autoencode", "{files}/a.wav", "--top", "0", "--out", "f.mp4", "--model", "{models}/film"],
            "top = 0 must be",
        ),
        (["flow", "{files}/a.png", "{files}/a.png", "--out", "f.flo", "--full", "0"], "full = 0.0 must be a"),
        (
            ["flow", "{files}/a.png", "{files}/a.png", "--out", "f.flo", "--full", "nan"],
            "full = nan must be a number of",
        ),
        (["flow", "a", "b", "c", "--out", "f.flo"], "3 files: give two pictures, or one film"),
        (["autoencode", "{files}/text.png", "--out", "f.mp4", "--model", "{models}/film"], "text.png"),
        (["autoencode", "{files}/a.wav", "--out", "f.mp4", "--model", "{models}/film"], "a.wav"),
        (["info", "languages"], "did you mean 'language'?"),
    ],
)
def test_wrong_input_gets_one_line_and_leaves_nothing(command, folder, tmp_path, monkeypatch, arguments, message):
    files, work = tmp_path / "files", tmp_path / "work"
    files.mkdir()
    work.mkdir()
    (files / "text.png").write_text("this is no picture")
    write_image(files / "a.png", np.zeros((30, 40, 3), np.uint8))
    write_image(files / "b.png", np.zeros((31, 40, 3), np.uint8))
    write_audio(files / "a.wav", np.zeros((4800, 1), np.float32), 48000)
    monkeypatch.chdir(work)
    code, out, err = command(*(part.format(models=folder, files=files) for part in arguments))
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not out
    assert not list(work.iterdir())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_numbers_than_float32(folder, dtype, frames, clip):
    """Every verb's function works in other dtypes; bfloat16 stays near float32."""
    text, image, flow, film = (from_pretrained(folder / name).to(dtype) for name in ("text", "image", "flow", "film"))
    assert fill_mask(text, "ab[MASK]d")[0].candidates
    assert next(classify(image, [frames[0]]))
    field, expected = (estimate_flow(m, *frames) for m in (flow, from_pretrained(folder / "flow")))
    assert np.abs(field - expected).max() <= 0.1 * np.abs(expected).max()
    sound, expected = (autoencode(m, clip).clip.sound for m in (film, from_pretrained(folder / "film")))
    assert np.abs(sound - expected).max() <= 0.1 * np.abs(expected).max()
