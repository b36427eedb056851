"""Log-mel spectrograms: scale, triangles and power against known formulas; the modality that reads sound as one."""

import numpy as np
import pytest
import torch

from perceivers.media.audio_files import write_audio
from perceivers.media.mel import FLOOR, hertz, log_mel, mel_bank, mels
from perceivers.modalities import Spectrogram

RATE, WINDOW, HOP, BANDS = 8000, 256, 96, 23


def test_the_scale_is_htks():
    """2595 log10(1 + f / 700): 1000 Hz are 1000 mels, to a hundredth; and back."""
    assert mels(0.0) == 0
    assert mels(1000.0) == pytest.approx(999.99, abs=0.01)
    assert mels(6300.0) == pytest.approx(2595)
    assert hertz(np.array([mels(f) for f in (0.0, 440.0, 3999.0)])) == pytest.approx([0, 440, 3999])


def test_triangles_by_hand():
    """Neighbours meet at half height between their centres; frequencies between the outer centres have weight one."""
    bank = mel_bank(RATE, BANDS, WINDOW).numpy()
    corners = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 4000 / 700), BANDS + 2) / 2595) - 1)
    frequencies = np.arange(129) * 8000 / 256
    for band, (low, middle, high) in enumerate(zip(corners, corners[1:], corners[2:], strict=False)):
        np.testing.assert_allclose(bank[band], np.interp(frequencies, [low, middle, high], [0, 1, 0]), atol=1e-6)
    inner = (frequencies >= corners[1]) & (frequencies <= corners[-2])
    np.testing.assert_allclose(bank[:, inner].sum(axis=0), 1, atol=1e-6)


def test_a_tone_is_in_its_band():
    """A tone of amplitude a at a frequency of the transform has power (a N / 4)² there, and a quarter of it beside."""
    number, amplitude = 40, 0.3
    times = np.arange(7 * HOP)
    tone = (amplitude * np.cos(2 * np.pi * number / WINDOW * times)).astype(np.float32)
    found = log_mel(tone, RATE, BANDS, HOP, WINDOW)
    assert found.shape == (7, BANDS)
    weights = mel_bank(RATE, BANDS, WINDOW).numpy()[:, number - 1 : number + 2] @ [0.25, 1, 0.25]
    expected = np.log(np.maximum(weights * (amplitude * WINDOW / 4) ** 2, FLOOR))
    np.testing.assert_allclose(found[3][expected > 0], expected[expected > 0], atol=1e-3)
    assert found[3].argmax() == weights.argmax()


def test_steps_stand_over_their_own_samples():
    """A click is loudest in the step whose hop has it in the middle; silence is at the floor."""
    for step in range(5):
        click = np.zeros(5 * HOP + 7, np.float32)
        click[step * HOP + HOP // 2] = 1
        found = log_mel(click, RATE, BANDS, HOP, WINDOW)
        assert found.shape == (5, BANDS)
        assert found.sum(axis=1).argmax() == step
    assert (log_mel(np.zeros(HOP, np.float32), RATE, BANDS, HOP, WINDOW) == np.float32(np.log(FLOOR))).all()


def test_what_cannot_be_is_refused():
    sound = np.zeros(700, np.float32)
    with pytest.raises(ValueError, match="hop = 300 must be from 1 to window = 256"):
        log_mel(sound, RATE, BANDS, 300, WINDOW)
    with pytest.raises(ValueError, match="5 samples are less than one hop of 96"):
        log_mel(sound[:5], RATE, BANDS, HOP, WINDOW)
    with pytest.raises(ValueError, match="101 bands are too many"):
        mel_bank(RATE, 101, WINDOW)
    with pytest.raises(ValueError, match="channels = 2"):
        Spectrogram(channels=2)
    with pytest.raises(ValueError, match=r"shape \(700, 2\), expected one channel of sound"):
        Spectrogram().preprocess(np.zeros((700, 2)), np.random.default_rng(0), False)


def test_a_spectrogram_reads_sound(tmp_path):
    """Samples or a file, at any rate, padded with silence if too short; tokens are patches of the spectrogram."""
    spec = Spectrogram(size=(4, 6), patch=(2, 3), rate=4000, hop=50, window=100)
    tone = np.sin(np.arange(600) / 3).astype(np.float32)[:, None] / 2
    write_audio(tmp_path / "a.wav", tone, 8000)
    read = spec.read_file(tmp_path / "a.wav")
    assert read.shape == (200, 1)
    assert np.abs(read[:190]).max() > 0.3
    write_audio(tmp_path / "b.wav", tone[:60], 8000)
    assert not spec.read_file(tmp_path / "b.wav")[30:].any()
    rng = np.random.default_rng(0)
    prepared = [spec.preprocess(value, rng, False) for value in (read, read[:, 0])]
    assert np.array_equal(*prepared)
    tokens = spec.build_input()(spec.collate(prepared))
    assert tokens.content.shape == (2, 4, 6)
    torch.testing.assert_close(tokens.content[0, 1], torch.from_numpy(prepared[0][:2, 3:].flatten()))
