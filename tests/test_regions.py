"""Files of region and audio features: what is read from them, and that whatever is wrong is named."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from src.config import AudioEncoderConfig, ImageEncoderConfig, ModelConfig
from src.data.audio import read_audio, spectrogram
from src.data.errors import DataError
from src.data.regions import Regions, fill_regions, load_features, load_regions
from src.data.schema import audio_tokens, image_fields

DIM = 6


def region_arrays(count: int = 5, dim: int = DIM, seed: int = 0) -> dict[str, np.ndarray]:
    """What a detector writes of a 60 × 40 image, in the project's own names."""
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1).reshape(count, 4) * [60, 40, 60, 40]
    return {
        "features": rng.standard_normal((count, dim)).astype(np.float32),
        "boxes": corners.astype(np.float32),
        "classes": rng.integers(0, 9, count),
        "scores": np.linspace(0.9, 0.1, count).astype(np.float32),
        "width": np.array(60),
        "height": np.array(40),
    }


def write(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(path, **arrays)
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    arrays = region_arrays()
    found = load_regions(write(tmp_path / "a.npz", arrays), DIM)
    assert (found.features.dtype, found.boxes.dtype, found.classes.dtype) == (np.float16, np.float32, np.int32)
    np.testing.assert_allclose(found.features, arrays["features"], rtol=1e-3, atol=1e-6)
    assert np.array_equal(found.boxes, arrays["boxes"]) and np.array_equal(found.classes, arrays["classes"])
    assert (found.width, found.height, len(found)) == (60, 40, 5)


def test_the_surest_come_first(tmp_path: Path) -> None:
    arrays = region_arrays()
    shuffled = arrays | {name: arrays[name][::-1] for name in ("features", "boxes", "classes", "scores")}
    one, other = (load_regions(write(tmp_path / "a.npz", each), DIM) for each in (arrays, shuffled))
    assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("features", "boxes", "classes"))


def test_other_extractors_names(tmp_path: Path) -> None:
    """Padded arrays with a count, boxes with further columns as shares, probabilities in place of classes."""
    own = load_regions(write(tmp_path / "own.npz", region_arrays()), DIM)
    arrays = region_arrays()
    padded = {"x": np.pad(arrays["features"], [(0, 3), (0, 0)]), "bbox": np.pad(arrays["boxes"], [(0, 3), (0, 0)])}
    extras = {"num_bbox": np.array(5), "image_w": np.array(60), "image_h": np.array([40]), "info": np.array("a")}
    found = load_regions(write(tmp_path / "bua.npz", padded | extras), DIM)
    assert np.array_equal(found.features, own.features) and np.array_equal(found.boxes, own.boxes)
    assert (found.classes == -1).all() and not found.scores.any()

    shares = arrays["boxes"] / np.array([60, 40, 60, 40], np.float32)
    table = np.eye(9, dtype=np.float32)[arrays["classes"]]
    other = {"features": arrays["features"], "norm_bb": np.hstack([shares, shares]), "conf": arrays["scores"]}
    found = load_regions(write(tmp_path / "other.npz", other | {"soft_labels": table}), DIM)
    assert (found.width, found.height) == (1, 1) and np.array_equal(found.classes, own.classes)
    np.testing.assert_allclose(found.box_vectors(), own.box_vectors(), atol=1e-6)
    with_size = load_regions(write(tmp_path / "s.npz", other | {"img_w": np.array(60), "img_h": np.array(40)}), DIM)
    np.testing.assert_allclose(with_size.boxes, own.boxes, atol=1e-4)


def test_box_vectors() -> None:
    boxes = np.array([[0, 0, 60, 40], [15, 10, 45, 30], [-6, 0, 90, 4]], np.float32)
    nothing = np.zeros(3, np.float32)
    regions = Regions(np.zeros((3, DIM), np.float16), boxes, nothing.astype(np.int32), nothing, 60, 40)
    expected = [[0, 0, 1, 1, 1, 1, 1], [0.25, 0.25, 0.75, 0.75, 0.5, 0.5, 0.25], [0, 0, 1, 0.1, 1, 0.1, 0.1]]
    np.testing.assert_allclose(regions.box_vectors(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": None}, r"no array features \(nor feature, feats, feat, x\)"),
        ({"features": np.zeros((5, 7), np.float32)}, r"features is float32\[5, 7\], not float \[n, 6\]"),
        ({"features": np.zeros((5, DIM), np.int32)}, "features is int32"),
        ({"features": np.zeros((0, DIM), np.float32)}, "features has no row"),
        ({"features": np.full((5, DIM), np.nan, np.float32)}, "features contains values that are not finite"),
        (
            {"features": np.full((5, DIM), 1e6, np.float32)},
            r"features contains 1e\+06, beyond half precision: scale the features",
        ),
        ({"boxes": None}, "no array boxes"),
        ({"boxes": np.zeros((5, 3))}, r"boxes is float64\[5, 3\], not numbers \[n, 4\]"),
        ({"boxes": np.zeros((4, 4))}, "there are 5 features but 4 boxes"),
        ({"boxes": np.array([[5, 5, 1, 9]] * 5)}, "boxes are not x1, y1, x2, y2"),
        ({"width": None}, r"boxes are in pixels but there is no width and height \(or image_w and image_h\): add them"),
        ({"height": np.array(0)}, "height is not a positive number"),
        ({"width": np.array([1, 2])}, "width is not a positive number"),
        ({"classes": np.full(5, -2)}, "classes holds -2"),
        ({"classes": np.zeros(4, int)}, "there are 5 features but 4 classes"),
        ({"classes": np.array(list("abcde"))}, "classes is <U1"),
        ({"scores": np.zeros(6)}, "there are 5 features but 6 scores"),
        ({"num_boxes": np.array(0)}, "num_boxes is not a positive whole number"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path: Path, change: dict, message: str) -> None:
    arrays = {name: value for name, value in (region_arrays() | change).items() if value is not None}
    with pytest.raises(DataError, match=rf"a\.npz: .*{message}"):
        load_regions(write(tmp_path / "a.npz", arrays), DIM)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.npz: no such file of regions"):
        load_regions(tmp_path / "absent.npz", DIM)
    np.save(tmp_path / "single.npy", np.zeros((3, DIM)))
    with pytest.raises(DataError, match=r"single\.npy: a single array: regions are an \.npz"):
        load_regions(tmp_path / "single.npy", DIM)
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    for content in (b"", b"no arrays", b"PK\3\4 cut"):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.npz: not a readable \.npy or \.npz"):
            load_regions(tmp_path / "bad.npz", DIM)
    with pytest.raises(DataError, match=r"objects\.npy: not a readable \.npy or \.npz"):
        load_features(tmp_path / "objects.npy", DIM)


def test_any_damaged_byte_is_an_error_or_nothing(tmp_path: Path) -> None:
    """Checksums of the archive: a changed byte is never taken for features."""
    whole = write(tmp_path / "a.npz", region_arrays()).read_bytes()
    own = load_regions(tmp_path / "a.npz", DIM)
    for place in range(0, len(whole), 7):
        (tmp_path / "b.npz").write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            found = load_regions(tmp_path / "b.npz", DIM)
        except DataError as error:
            assert "b.npz" in str(error) and "\n" not in str(error)
        else:
            assert np.array_equal(found.features, own.features) and np.array_equal(found.boxes, own.boxes)


def test_features_of_audio(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).standard_normal((4, DIM)).astype(np.float32)
    np.save(tmp_path / "a.npy", frames)
    np.savez_compressed(tmp_path / "a.npz", features=frames)
    single, packed = load_features(tmp_path / "a.npy", DIM), load_features(tmp_path / "a.npz", DIM)
    assert single.dtype == np.float16 and np.array_equal(single, packed)
    with pytest.raises(DataError, match=r"a\.npy: features is float32\[4, 6\], not float \[n, 5\]"):
        load_features(tmp_path / "a.npy", 5)
    with pytest.raises(DataError, match=r"none\.npy: no such file of features"):
        load_features(tmp_path / "none.npy", DIM)


def test_rows_hold_the_surest_regions(tmp_path: Path) -> None:
    regions = load_regions(write(tmp_path / "a.npz", region_arrays()), DIM)
    model = ModelConfig(image=ImageEncoderConfig(input="region", regions=3, region_dim=DIM, region_classes=9))
    batch = {name: np.zeros((2, *spec.shape), spec.dtype) for name, spec in image_fields(model).items()}
    fill_regions(batch, 0, regions, model.image, "x")
    few = replace(regions, **{key: getattr(regions, key)[:1] for key in ("features", "boxes", "classes", "scores")})
    fill_regions(batch, 1, few, model.image, "x")
    assert np.array_equal(batch["regions"][0], regions.features[:3])
    assert batch["region_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["region_classes"][1].tolist() == [regions.classes[0], -1, -1] and not batch["regions"][1, 1:].any()
    message = "x: features of 6 numbers, model.image.region_dim is 7: change the config"
    with pytest.raises(DataError, match=message):
        fill_regions(batch, 0, regions, replace(model.image, region_dim=7), "x")
    highest = int(regions.classes.max())
    with pytest.raises(DataError, match=f"class {highest}, model.image.region_classes is {highest}: change the config"):
        fill_regions(batch, 0, regions, replace(model.image, region_classes=highest), "x")


def test_an_audio_file_is_not_read_as_features(tmp_path: Path) -> None:
    fbank, feature = AudioEncoderConfig(), AudioEncoderConfig(input="feature", feature_dim=DIM, max_frames=4, stride=1)
    np.save(tmp_path / "a.npy", np.ones((9, DIM), np.float32))
    assert read_audio(tmp_path / "a.npy", feature).shape == (4, DIM)
    with pytest.raises(DataError, match=r"a\.npy: model.audio.input=fbank needs an audio file"):
        read_audio(tmp_path / "a.npy", fbank)
    with pytest.raises(DataError, match=r"a\.wav: model.audio.input=feature needs features \(\.npy, \.npz\)"):
        read_audio(tmp_path / "a.wav", feature)


def test_a_waveform_is_kept_as_samples(tmp_path: Path) -> None:
    """At the model's rate, cut behind max_frames hops, and shown to the eye as log-mel."""
    config = AudioEncoderConfig(input="wav2vec2", sample_rate=8000, hop_ms=20, max_frames=10)
    wave = 0.8 * np.sin(np.arange(16000) * 0.05)
    soundfile.write(tmp_path / "a.wav", wave, 16000, subtype="FLOAT")
    kept = read_audio(tmp_path / "a.wav", config)
    assert kept.dtype == np.int16 and kept.shape == (config.length,) == (1600,)
    np.testing.assert_allclose(kept[100:1500] / 32767, wave[200:3000:2], atol=0.01)
    assert spectrogram(kept, config).shape[1] == config.mels
    assert spectrogram(kept, replace(config, input="feature", stride=1)) is None
    assert [audio_tokens(config, n) for n in (0, 399, 400, 719, 720, 16000)] == [0, 0, 1, 1, 2, 49]
