"""Stored audio clips as sound: what a log-mel is turned into has that log-mel again."""

import numpy as np
import pytest

from src.config import AudioEncoderConfig
from src.data.audio import log_mel, waveform
from src.data.playback import PEAK, invert_log_mel, sound

RATE = 16000


def vowels(seconds: float = 1.2) -> np.ndarray:
    """A voice whose pitch and formants move, with a pause."""
    at = np.arange(int(seconds * RATE)) / RATE
    pitch = 120 + 40 * np.sin(2 * np.pi * 1.5 * at)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    formant = 500 + 400 * np.sin(2 * np.pi * 2 * at)
    wave = np.zeros_like(at)
    for k in range(1, 30):
        wave += np.exp(-(((k * pitch - formant) / 300) ** 2)) * np.sin(k * phase)
    return (wave * (np.abs(at - 0.6) > 0.1)).astype(np.float32)


@pytest.mark.parametrize(("mels", "hop_ms"), [(64, 20), (80, 10)])
def test_the_sound_of_a_log_mel_has_that_log_mel(mels: int, hop_ms: int) -> None:
    config = AudioEncoderConfig(mels=mels, hop_ms=hop_ms, max_frames=400)
    clip = log_mel(vowels(), RATE, config)
    wave = invert_log_mel(clip, config)
    again = log_mel(wave, RATE, config)[: len(clip)]
    assert abs(len(wave) - 1.2 * RATE) < RATE * 0.05
    heard = clip > 128  # within four decades of the loudest band: what is below is masked
    assert np.corrcoef(clip[heard], again[heard])[0, 1] > 0.9
    # a wave of the same length that knows nothing of the clip is far from it
    noise = log_mel(np.random.default_rng(0).standard_normal(len(wave)).astype(np.float32), RATE, config)[: len(clip)]
    assert (
        np.abs(again[heard] - clip[heard].astype(int)).mean()
        < 0.2 * np.abs(noise[heard] - clip[heard].astype(int)).mean()
    )


def test_a_tone_stays_at_its_pitch() -> None:
    config = AudioEncoderConfig(max_frames=100)
    tone = np.sin(2 * np.pi * 700 * np.arange(RATE) / RATE).astype(np.float32)
    spectrum = np.abs(np.fft.rfft(sound(log_mel(tone, RATE, config), config, RATE)))
    assert abs(spectrum.argmax() * RATE / 2 / (len(spectrum) - 1) - 700) < 40  # a band is 46 Hz wide


def test_a_waveform_is_what_was_recorded() -> None:
    config = AudioEncoderConfig(input="wav2vec2", max_frames=100)
    wave = vowels(0.5)
    heard = sound(waveform(wave, RATE, config), config, RATE)
    assert np.abs(heard / PEAK - wave / np.abs(wave).max()).max() < 1e-3
    assert len(sound(waveform(wave, RATE, config), config, 8000)) == len(wave) // 2


def test_features_are_no_sound_and_silence_stays_silent() -> None:
    assert sound(np.ones((5, 8), np.float16), AudioEncoderConfig(input="feature", feature_dim=8), RATE) is None
    config = AudioEncoderConfig()
    assert not sound(np.zeros((20, config.mels), np.uint8), config, RATE).any()
    assert np.isfinite(sound(np.full((1, config.mels), 255, np.uint8), config, RATE)).all()  # a single frame
