"""Audio files to what a dataset stores: log-mel frames, a waveform, or features that another network computed.

Letters: ``n`` samples, ``M`` frames, ``N`` mel bands, ``W`` samples of a window, ``R`` frequency bins.
"""

import functools
from collections.abc import Iterator
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft  # in float32 eight times as fast as numpy's

from src.config import AudioEncoderConfig
from src.data.decoding import brief, check_file, decoding
from src.data.errors import DataError
from src.data.regions import load_features

FEATURE_ENDINGS = (".npy", ".npz")
DECADES = 8.0  # dynamic range that a byte spans, below the loudest band of the utterance
MOST_SAMPLES = 1 << 24  # a second, all channels together
BLOCK = 1 << 20  # samples decoded at once, all channels together
UNKNOWN_LENGTH = (1 << 63) - 1  # frames that libsndfile states where a file does not say how many it has
LARGEST = 1e15  # a sample beyond it is a damaged one; its square still fits float32
OPPOSITE = 0.01  # share of the channels' power below which their mean has lost what is heard
QUIET = 2.0**-6  # peak of the waveform below which 16 bits would cost precision


def read_audio(path: Path, config: AudioEncoderConfig, start: float = 0.0, seconds: float | None = None) -> np.ndarray:
    """A file as ``config.input`` stores it (``schema.audio_layout``), cut to ``config.length``.

    ``start`` and ``seconds`` choose a part of a recording.
    """
    check_kind(path, config)
    if config.input == "feature":
        return load_features(path, config.feature_dim)[: config.length]
    wanted = longest(config) if seconds is None else min(longest(config), seconds)
    return KINDS[config.input](*load_audio(path, wanted, start), config)


def check_kind(path: Path, config: AudioEncoderConfig) -> None:
    """Raises DataError if the file is audio but the model reads features, or the other way round."""
    if (path.suffix.lower() in FEATURE_ENDINGS) != (config.input == "feature"):
        wanted = "features (.npy, .npz)" if config.input == "feature" else "an audio file"
        raise DataError(f"{path}: model.audio.input={config.input} needs {wanted}")


def load_audio(path: str | Path, seconds: float | None = None, start: float = 0.0) -> tuple[np.ndarray, int]:
    """Reads an audio file of any format that libsndfile knows: mono float32 [n] (:func:`mono`) and its rate.

    ``seconds`` says how much is needed, from ``start`` on; the rest is not decoded.
    """
    import soundfile  # only where audio is read: a run without audio needs no libsndfile

    check_file(path, "audio file")
    with decoding(f"{path}: not a readable audio file"):
        try:
            with _reader()(str(path)) as file:
                rate = file.samplerate
                if rate * file.channels > MOST_SAMPLES:  # a damaged header must not ask for all memory
                    raise DataError(f"{path}: not a readable audio file ({rate} Hz, {file.channels} channels)")
                if start:
                    _skip(file, round(start * rate))
                samples = None if seconds is None else int(np.ceil(seconds * rate)) + 1
                blocks = list(_blocks(file, samples))
        except soundfile.LibsndfileError as error:
            raise DataError(f"{path}: not a readable audio file ({brief(error).rsplit(': ', 1)[-1]})") from None
        if not blocks:
            raise DataError(f"{path}: the audio is empty" + (f" after {start:.1f} s" if start else ""))
        return checked_mono(np.concatenate(blocks), str(path)), rate


@functools.cache
def _reader() -> type:
    """A SoundFile that reads on where it is.

    soundfile seeks behind whatever it has read, and in an MP3 the first 0.2 s behind a seek are wrong.
    """
    import soundfile

    class Reader(soundfile.SoundFile):
        def seekable(self) -> bool:
            return False

    return Reader


def _skip(file: Any, samples: int) -> None:
    """Goes on so many samples from the beginning, in an MP3 by decoding them."""
    if file.format != "MP3":
        file.seek(min(samples, file.frames))
        return
    for _ in _blocks(file, samples):
        pass


def checked_mono(wave: np.ndarray, name: str) -> np.ndarray:
    """:func:`mono` of samples float32 [n, channels]; ``name`` is theirs in error messages.

    Raises:
        DataError: a sample is not finite, or beyond what any recording holds.
    """
    if not np.isfinite(wave).all():
        raise DataError(f"{name}: the audio contains values that are not finite")
    if np.abs(wave).max() > LARGEST:
        raise DataError(f"{name}: the audio contains {np.abs(wave).max():.3g}: a sample is between −1 and 1")
    return mono(wave)


def _blocks(file: Any, samples: int | None) -> Iterator[np.ndarray]:
    """At most so many samples, float32 [n, channels], some at a time: a header may promise more than there is."""
    import soundfile

    size = max(1, BLOCK // file.channels)
    while samples is None or samples > 0:
        room = np.full((size if samples is None else min(size, samples), file.channels), np.nan, np.float32)
        try:
            block = file.read(out=room)
        except soundfile.LibsndfileError:
            # a FLAC that was written into a pipe ends with an error after its last samples have been decoded
            block = room[~np.isnan(room[:, 0])] if file.frames == UNKNOWN_LENGTH else room[:0]
            if not len(block):
                raise
            yield block
            return
        if not len(block):
            return
        yield block
        samples = None if samples is None else samples - len(block)


def mono(wave: np.ndarray) -> np.ndarray:
    """float32 [n] of [n, channels]: the mean of the channels, or the loudest one where they cancel each other.

    The mean of two channels that are each other's inverse would be silence, or what rounding has left of them.
    """
    mean = wave.mean(axis=1)
    if wave.shape[1] > 1:
        power = np.square(wave, dtype=np.float64).mean(axis=0)
        if np.square(mean, dtype=np.float64).mean() < OPPOSITE * power.mean():
            return np.ascontiguousarray(wave[:, power.argmax()])
    return mean


def rescale(wave: np.ndarray, low: float, high: float) -> np.ndarray:
    """The wave with a peak between both; silence, and what has one already, stays as it is."""
    peak = float(np.abs(wave).max(initial=0))
    if low <= peak <= high or not peak:
        return wave
    return (wave * (np.float64(min(max(peak, low), high)) / peak)).astype(np.float32)


def resample(wave: np.ndarray, rate: int, target: int) -> np.ndarray:
    """Band-limited change of the sample rate: float32 [n] at ``rate`` Hz to [ceil(n · target / rate)] at ``target`` Hz.

    The spectrum is cut (or padded) and transformed back; the wave is padded to whole periods of the two rates'
    common divisor, so that the ratio is exact.
    """
    if rate == target:
        return np.asarray(wave, np.float32)
    divisor = gcd(rate, target)
    down, up = rate // divisor, target // divisor
    # One period to spare keeps the end from wrapping around to the start.
    periods = scipy.fft.next_fast_len(-(-len(wave) // down) + 1)
    spectrum = scipy.fft.rfft(np.asarray(wave, np.float32), periods * down)
    bins = periods * min(down, up) // 2 + 1
    out = scipy.fft.irfft(spectrum[:bins], periods * up) * (up / down)
    return out[: -(-len(wave) * up // down)]


def log_mel(wave: np.ndarray, rate: int, config: AudioEncoderConfig) -> np.ndarray:
    """Log-mel spectrogram, uint8 [M, N] with M ≤ ``config.max_frames``.

    Power spectra of Hann windows, triangular mel bands, log10; the loudest band of the utterance is 255,
    eight decades below it and less is 0. A last window that is not full is padded with silence.
    """
    window, hop = frame_lengths(config)
    wave = resample(wave[: int(np.ceil(longest(config) * rate)) + 1], rate, config.sample_rate)
    wave = rescale(wave, 2.0**-20, 2.0**20)  # whose powers float32 holds; the loudness does not matter
    count = min(config.max_frames, 1 + max(0, -(-(len(wave) - window) // hop)))
    padded = np.zeros(window + hop * (count - 1), np.float32)
    wave = wave[: len(padded)]
    padded[: len(wave)] = wave
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]  # [M, W]
    taper, bands = analysis(config.sample_rate, window, config.mels)
    spectrum = scipy.fft.rfft(frames * taper, 2 * (bands.shape[0] - 1))  # [M, R]
    power = (spectrum.real**2 + spectrum.imag**2) @ bands  # [M, N]
    peak = power.max()
    if peak < np.finfo(np.float32).tiny:
        return np.zeros(power.shape, np.uint8)  # silence has no loudest band to measure from
    level = np.log10(np.maximum(power / peak, 10.0**-DECADES))
    return np.rint(255 * (1 + level / DECADES)).astype(np.uint8)


def waveform(wave: np.ndarray, rate: int, config: AudioEncoderConfig) -> np.ndarray:
    """The wave at ``config.sample_rate``, int16 [M] with M ≤ ``config.length``.

    A wave beyond [−1, 1] is scaled down and a very quiet one up, so that neither is clipped nor becomes silence: the
    encoder normalises what it reads, so that loudness makes no difference to it.
    """
    wave = resample(wave[: int(np.ceil(longest(config) * rate)) + 1], rate, config.sample_rate)[: config.length]
    return np.rint(rescale(wave, QUIET, 1.0) * 32767).astype(np.int16)


KINDS = {"fbank": log_mel, "wav2vec2": waveform}  # wave → what is stored, by model.audio.input


def spectrogram(clip: np.ndarray, config: AudioEncoderConfig) -> np.ndarray | None:
    """Log-mel of a stored clip for display, uint8 [M, N]; None if features are stored, which show nothing."""
    if config.input == "wav2vec2":
        return log_mel(clip / np.float32(32767), config.sample_rate, config)
    return clip if config.input == "fbank" else None


def frame_lengths(config: AudioEncoderConfig) -> tuple[int, int]:
    """Samples of the analysis window and of the hop."""
    return config.sample_rate * config.window_ms // 1000, config.sample_rate * config.hop_ms // 1000


def longest(config: AudioEncoderConfig) -> float:
    """Seconds of audio that fill ``config.length``."""
    if config.input == "wav2vec2":
        return config.length / config.sample_rate
    window, hop = frame_lengths(config)
    return (window + hop * (config.max_frames - 1)) / config.sample_rate


def mel_bands(rate: int, bins: int, mels: int) -> np.ndarray:
    """Triangular bands, float32 [R, N], evenly spaced on the mel scale of Slaney's Auditory Toolbox.

    Each band has unit area (in Hz), as in librosa's ``filters.mel``: linear below 1 kHz, logarithmic above.
    """
    top = _to_mel(np.array([rate / 2]))[0]
    edges = _to_hz(np.linspace(0.0, top, mels + 2))
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    hz = np.linspace(0.0, rate / 2, bins)[:, None]
    bands = np.minimum((hz - low) / (centre - low), (high - hz) / (high - centre))
    return (np.maximum(bands, 0.0) * (2.0 / (high - low))).astype(np.float32)


@functools.lru_cache(maxsize=8)
def analysis(rate: int, window: int, mels: int) -> tuple[np.ndarray, np.ndarray]:
    """The Hann window [W] and the bands [R, N] of the smallest power-of-two FFT that leaves no band empty."""
    size = 1 << (window - 1).bit_length()
    bands = mel_bands(rate, size // 2 + 1, mels)
    while not bands.any(axis=0).all():
        size *= 2
        bands = mel_bands(rate, size // 2 + 1, mels)
    taper = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    return taper.astype(np.float32), bands


_LINEAR_STEP = 200.0 / 3  # Hz a mel below 1 kHz
_LOG_STEP = np.log(6.4) / 27  # natural logarithm of the ratio a mel above it
_LOG_START = 1000.0 / _LINEAR_STEP  # mel at 1 kHz


def _to_mel(hz: np.ndarray) -> np.ndarray:
    return np.where(hz < 1000.0, hz / _LINEAR_STEP, _LOG_START + np.log(np.maximum(hz, 1.0) / 1000.0) / _LOG_STEP)


def _to_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < _LOG_START, mel * _LINEAR_STEP, 1000.0 * np.exp(_LOG_STEP * (mel - _LOG_START)))
