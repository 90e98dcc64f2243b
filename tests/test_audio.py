"""Log-mel against plain loops, resampling, audio files of any kind."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from src.config import AudioEncoderConfig
from src.data import audio
from src.data.audio import analysis, frame_lengths, load_audio, log_mel, mel_bands, resample
from src.data.errors import DataError

CONFIG = AudioEncoderConfig()


def tone(hz: float, seconds: float, rate: int) -> np.ndarray:
    return np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate).astype(np.float32)


def plain_log_mel(wave: np.ndarray, config: AudioEncoderConfig) -> np.ndarray:
    """The definition, frame by frame and bin by bin."""
    window, hop = frame_lengths(config)
    size = 512
    bands = mel_bands(config.sample_rate, size // 2 + 1, config.mels).astype(np.float64)
    rows = []
    start = 0
    while True:
        piece = wave[start : start + window].astype(np.float64)
        piece = np.concatenate([piece, np.zeros(window - len(piece))])
        piece = piece * [0.5 - 0.5 * np.cos(2 * np.pi * i / window) for i in range(window)]
        bins = [np.sum(piece * np.exp(-2j * np.pi * k * np.arange(window) / size)) for k in range(size // 2 + 1)]
        rows.append(np.abs(bins) ** 2 @ bands)
        if start + window >= len(wave):
            break
        start += hop
    power = np.array(rows)
    level = np.log10(np.maximum(power, power.max() * 1e-8)) - np.log10(power.max() * 1e-8)
    return np.rint(level / 8 * 255)


def test_log_mel_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    wave = tone(700, 0.21, 16000) * np.linspace(0, 1, 3360, dtype=np.float32)
    wave += 0.001 * rng.standard_normal(3360).astype(np.float32)
    found = log_mel(wave, 16000, CONFIG)
    wanted = plain_log_mel(wave, CONFIG)
    assert found.shape == wanted.shape == (11, 64) and found.dtype == np.uint8
    assert np.abs(found - wanted).max() <= 1 and (found == wanted).mean() > 0.98
    assert found.max() == 255


@pytest.mark.parametrize(("bins", "mels"), [(257, 40), (257, 64), (1025, 128)])
def test_bands_are_slaneys(bins: int, mels: int) -> None:
    utils = pytest.importorskip("transformers.audio_utils")
    wanted = utils.mel_filter_bank(bins, mels, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    assert np.allclose(mel_bands(16000, bins, mels), wanted, atol=1e-6)


@pytest.mark.parametrize("hz", [250, 1000, 3000, 6000])
def test_tone_lands_in_its_band(hz: int) -> None:
    bands = mel_bands(16000, 257, CONFIG.mels)
    band = log_mel(tone(hz, 0.5, 16000), 16000, CONFIG).astype(int).mean(axis=0).argmax()
    low, high = np.flatnonzero(bands[:, band])[[0, -1]] * 16000 / 512
    assert low - 32 <= hz <= high + 32


@pytest.mark.parametrize(("mels", "bins"), [(64, 257), (128, 257), (200, 513), (500, 1025)])
def test_the_transform_is_the_smallest_that_leaves_no_band_empty(mels: int, bins: int) -> None:
    taper, bands = analysis(16000, 400, mels)
    assert len(taper) == 400 and bands.shape == (bins, mels) and bands.any(axis=0).all()
    assert np.array_equal(bands, mel_bands(16000, bins, mels))
    assert bins == 257 or not mel_bands(16000, bins // 2 + 1, mels).any(axis=0).all()


@pytest.mark.parametrize("mels", [128, 200])
def test_narrow_bands_are_not_empty(mels: int) -> None:
    config = AudioEncoderConfig(mels=mels)
    noise = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    assert (log_mel(noise, 16000, config).max(axis=0) > 0).all()


def test_length_and_cut() -> None:
    assert log_mel(tone(440, 0.001, 16000), 16000, CONFIG).shape == (1, 64)
    assert log_mel(tone(440, 0.025, 16000), 16000, CONFIG).shape == (1, 64)
    assert log_mel(tone(440, 0.026, 16000), 16000, CONFIG).shape == (2, 64)
    long = tone(440, 9, 22050)
    assert log_mel(long, 22050, CONFIG).shape == (CONFIG.max_frames, 64)
    assert np.array_equal(log_mel(np.zeros(1600, np.float32), 16000, CONFIG), np.zeros((5, 64), np.uint8))


def test_loudness_does_not_matter() -> None:
    wave = tone(440, 0.5, 16000) + 0.1 * tone(2000, 0.5, 16000)
    difference = log_mel(wave, 16000, CONFIG).astype(int) - log_mel(wave * 0.01, 16000, CONFIG)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_resample_keeps_a_tone(rate: int, target: int = 16000) -> None:
    found = resample(tone(440, 1.03, rate), rate, target)
    wanted = tone(440, 1.03, target)
    assert abs(len(found) - len(wanted)) <= 1 and found.dtype == np.float32
    middle = slice(target // 10, -target // 10)
    count = min(len(found), len(wanted))
    assert np.abs(found[:count] - wanted[:count])[middle].max() < 0.01


def test_resample_removes_what_the_new_rate_cannot_hold() -> None:
    found = resample(tone(10000, 1, 44100), 44100, 16000)
    assert np.abs(found[1600:-1600]).max() < 0.01


@pytest.mark.parametrize(
    ("name", "subtype"), [("a.wav", "PCM_16"), ("a.flac", "PCM_24"), ("a.ogg", "VORBIS"), ("a.wav", "FLOAT")]
)
def test_load_audio(tmp_path: Path, name: str, subtype: str) -> None:
    left = tone(440, 0.5, 22050) * 0.5
    soundfile.write(tmp_path / name, np.stack([left, -0.5 * left], axis=1), 22050, subtype=subtype)
    wave, rate = load_audio(tmp_path / name)
    assert rate == 22050 and wave.dtype == np.float32 and wave.shape == left.shape
    assert np.abs(wave - 0.25 * left).max() < 0.02


def test_bad_audio_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no audio")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "nan.wav", np.array([0, np.nan]), 16000, subtype="FLOAT")
    for name, message in [
        ("absent.wav", "no such audio file"),
        ("text.wav", "not a readable audio file"),
        ("empty.wav", "the audio is empty"),
        ("nan.wav", "not finite"),
    ]:
        with pytest.raises(DataError, match=f"{name}: .*{message}") as caught:
            load_audio(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_recording_is_read_up_to_its_damage_and_not_beyond(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 64000), 16000)
    whole, _ = load_audio(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : -len(data) // 4] = bytes([255]) * len(data[len(data) // 2 : -len(data) // 4])
    path.write_bytes(data)
    assert np.array_equal(load_audio(path, 0.5)[0], whole[:8001])
    with pytest.raises(DataError, match=r"a.flac: not a readable audio file"):
        load_audio(path)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_a_piece_is_that_part_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Behind a seek an MP3 has other samples for a fifth of a second; a long one is decoded in blocks."""
    rate = 22050
    wave = np.sin(2 * np.pi * np.cumsum(np.linspace(200, 3000, 3 * rate)) / rate).astype(np.float32)
    soundfile.write(tmp_path / name, wave, rate)
    whole, _ = load_audio(tmp_path / name)
    monkeypatch.setattr(audio, "BLOCK", 10000)
    assert np.array_equal(load_audio(tmp_path / name)[0], whole)
    piece, _ = load_audio(tmp_path / name, 0.8, 1.25)
    begin = round(1.25 * rate)
    np.testing.assert_allclose(piece, whole[begin : begin + len(piece)], atol=1e-4)
    assert len(piece) == pytest.approx(0.8 * rate, abs=2)
    with pytest.raises(DataError, match="the audio is empty after 9.0 s"):
        load_audio(tmp_path / name, 0.5, 9.0)
