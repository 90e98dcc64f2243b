"""A stored audio clip as sound to listen to.

A waveform is what was recorded. Of log-mel frames the phases and all but N bands of the spectrum are gone: the sound is
reconstructed after Griffin and Lim 1984 ("Signal estimation from modified short-time Fourier transform"), with the
acceleration of Perraudin et al. 2013 ("A fast Griffin-Lim algorithm"). It says what the model hears, in a voice that
rustles. Frames lie further apart than the algorithm can bridge (20 ms, windows of 25 ms), so that powers are
interpolated between them.

Letters: ``M`` frames, ``N`` mel bands, ``F`` finer frames, ``R`` frequency bins, ``n`` samples.
"""

import numpy as np
import scipy.fft

from src.config import AudioEncoderConfig
from src.data.audio import DECADES, analysis, frame_lengths, resample

ITERATIONS = 20
MOMENTUM = 0.99  # Perraudin et al. 2013, section 4
OVERLAP = 4  # windows over each sample, at least
PEAK = 0.7  # of the sound; 1 is as loud as a file can say


def sound(clip: np.ndarray, config: AudioEncoderConfig, rate: int) -> np.ndarray | None:
    """A clip as ``schema.audio_layout`` stores it: float32 [n] at ``rate`` Hz; None of features, which are no sound."""
    if config.input == "feature" or not len(clip):
        return None
    wave = invert_log_mel(clip, config) if config.input == "fbank" else clip / np.float32(32767)
    wave = resample(wave, config.sample_rate, rate)
    if not clip.any():  # silence, of which only what rounding left would be heard
        return np.zeros(len(wave), np.float32)
    return (wave * (PEAK / float(np.abs(wave).max()))).astype(np.float32)


def invert_log_mel(clip: np.ndarray, config: AudioEncoderConfig) -> np.ndarray:
    """A wave float32 [n] at ``config.sample_rate`` whose :func:`src.data.audio.log_mel` is about ``clip`` [M, N]."""
    window, hop = frame_lengths(config)
    taper, bands = analysis(config.sample_rate, window, config.mels)
    finer = -(-hop * OVERLAP // window)  # frames for one, until every sample lies under so many windows
    step = hop // finer
    level = (clip.astype(np.float32) / 255 - 1) * DECADES  # log₁₀ of the power of each band
    places = np.arange((len(clip) - 1) * finer + 1) / finer
    level = _between(places, np.arange(len(clip)), level)  # [F, N]
    density = level - np.log10(bands.sum(0))
    centres = (bands * np.arange(len(bands))[:, None]).sum(0) / bands.sum(0)
    level = _between(np.arange(len(bands)), centres, density.T).T  # [F, R]
    return _griffin_lim(np.sqrt(10.0**level), taper, step, 2 * (len(bands) - 1))


def _between(at: np.ndarray, known: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows [K, X] at the places ``known`` [K], interpolated linearly at other places [A]: [A, X]."""
    right = np.clip(np.searchsorted(known, at), 1, max(1, len(known) - 1))
    left = right - 1
    right = np.minimum(right, len(known) - 1)
    span = np.maximum(known[right] - known[left], 1e-9)
    share = np.clip((at - known[left]) / span, 0, 1)[:, None].astype(np.float32)
    return rows[left] * (1 - share) + rows[right] * share


def _griffin_lim(magnitude: np.ndarray, taper: np.ndarray, step: int, size: int) -> np.ndarray:
    """A wave whose spectra, of windows ``step`` samples apart, have about these magnitudes [F, R]."""
    count, window = len(magnitude), len(taper)
    length = window + step * (count - 1)
    places = np.arange(window) + step * np.arange(count)[:, None]  # [F, W]
    weight = np.bincount(places.ravel(), np.tile(taper**2, count), length)
    weight = np.maximum(weight, 1e-3 * weight.max())

    def to_wave(spectra: np.ndarray) -> np.ndarray:
        frames = scipy.fft.irfft(spectra, size)[:, :window] * taper
        return (np.bincount(places.ravel(), frames.ravel(), length) / weight).astype(np.float32)

    def to_spectra(wave: np.ndarray) -> np.ndarray:
        return scipy.fft.rfft(wave[places] * taper, size)

    phases = np.exp(2j * np.pi * np.random.default_rng(0).random(magnitude.shape)).astype(np.complex64)
    before = np.zeros_like(phases)
    for _ in range(ITERATIONS):
        found = to_spectra(to_wave(magnitude * phases))
        phases = found + MOMENTUM * (found - before)
        phases /= np.maximum(np.abs(phases), 1e-9)
        before = found
    return to_wave(magnitude * phases)
