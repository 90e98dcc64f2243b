"""The readers: what lands in the dataset, what is rejected and why, what the command says."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import png
from PIL import Image

from src.config import load_config
from src.data.digests import digest
from src.data.errors import DataError
from src.data.prepare import common
from src.data.prepare import media as reading
from src.data.prepare.report import Tally
from src.data.prepare.rows import Row
from src.data.record import Record
from src.data.store import Dataset, read_info

COMMAND = Path(__file__).parents[1] / "tools" / "prepare_data.py"


def prepare(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(COMMAND), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def read(folder: Path, split: str) -> dict[str, Record]:
    dataset = Dataset(folder, split)
    return {record.key: record for record in dataset.read(np.unique(dataset.samples[:, 0]))}


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """Three images, a broken one, an audio clip and a broken one."""
    folder = tmp_path / "media"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        (folder / f"{name}.png").write_bytes(png(rng.integers(0, 256, (20, 30, 3), np.uint8)))
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:200])
    soundfile.write(folder / "a.wav", rng.uniform(-0.5, 0.5, 8000), 16000)
    (folder / "broken.wav").write_bytes(b"RIFFnothing")
    return folder


def write_rows(path: Path, rows: list[object]) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_manifest(tmp_path: Path, media: Path) -> None:
    rows = [
        {"id": "1", "image": "a.png", "captions": ["一只猫", " 猫 "], "audio": ["a.wav", None], "split": "train"},
        {"id": 2, "image": "b.png", "caption": "一只狗", "audio": "a.wav", "split": "train"},
        {"id": "3", "image": "c.png", "split": "train"},
        {"id": "4", "caption": "只有字", "image": None, "split": "train"},
        {"id": "5", "audio": "a.wav", "split": "test"},
        {"id": "6", "caption": "又一只", "split": "val"},
    ]
    output = tmp_path / "out"
    done = prepare("manifest", "--input", write_rows(tmp_path / "m.jsonl", rows), "--media", media, "--output", output)
    assert done.returncode == 0, done.stderr
    assert "rejected rows: 0" in done.stdout and not (output / "rejected.jsonl").exists()
    train = read(output, "train")
    assert train["1"].captions == ("一只猫", "猫")
    assert train["1"].image == (media / "a.png").read_bytes()
    assert [clip is None for clip in train["1"].audio] == [False, True]
    assert train["2"].captions == ("一只狗",) and train["2"].audio[0] is not None
    assert train["3"].captions == () and train["4"].image is None
    assert read(output, "test")["5"].audio[0].shape == (25, 64)
    assert read(output, "dev")["6"].captions == ("又一只",), "val is the dev split"
    entry = read_info(output)["splits"]["train"]
    assert [entry[name] for name in ("records", "samples", "text", "image", "audio")] == [4, 5, 4, 4, 2]
    again = prepare("manifest", "--input", tmp_path / "m.jsonl", "--media", media, "--output", output)
    assert again.returncode == 2 and again.stderr.strip().count("\n") == 0 and "already holds a dataset" in again.stderr


def test_several_recordings_of_a_caption(tmp_path: Path, media: Path) -> None:
    """Each is a sample, with the caption and the image."""
    soundfile.write(media / "b.wav", np.random.default_rng(1).uniform(-0.5, 0.5, 4800), 16000)
    row = {"id": "1", "image": "a.png", "captions": ["一", "二", "三"], "audio": [["a.wav", "b.wav"], None, "b.wav"]}
    manifest = write_rows(tmp_path / "m.jsonl", [{**row, "split": "train"}, {"id": "2", "image": "b.png"}])
    done = prepare("manifest", "--input", manifest, "--media", media, "--workers", 1, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    record = read(tmp_path / "out", "train")["1"]
    assert record.captions == ("一", "一", "二", "三")
    assert [None if clip is None else len(clip) for clip in record.audio] == [25, 15, None, 15]
    samples = Dataset(tmp_path / "out", "train").samples
    assert samples[samples[:, 0] == 0].tolist() == [[0, 0, 0], [0, 1, 0], [0, 2, 0], [0, 3, 0]]


def test_audio_is_stored_as_training_asks_for_it(tmp_path: Path, media: Path) -> None:
    """The error of other settings names what to set, and the command that makes the dataset fit."""
    manifest = write_rows(tmp_path / "m.jsonl", [{"id": "1", "caption": "猫", "audio": "a.wav", "split": "train"}])
    words = ("manifest", "--input", manifest, "--media", media, "--workers", 1)
    done = prepare(*words, "model.audio.mels=32", "--config", "config/model/demo.yaml", "--output", tmp_path / "first")
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "first", "train")["1"].audio[0].shape == (25, 32), "key=value wins over --config"
    stored = read_info(tmp_path / "first")["audio"]
    assert (stored["mels"], stored["max_frames"]) == (32, 160)

    base = load_config("config/model/base.yaml").model.audio
    with pytest.raises(DataError) as failed:
        Dataset(tmp_path / "first", "train", base)
    said = str(failed.value)
    keys = re.search("set (.*) in the configuration", said)[1].split()
    Dataset(tmp_path / "first", "train", load_config("config/model/base.yaml", keys).model.audio)
    again = said.split("prepare again: python tools/prepare_data.py manifest … --output NEW_FOLDER ")[1].split()
    done = prepare(*words, "--config", "config/model/demo.yaml", "--output", tmp_path / "second", *again)
    assert done.returncode == 0, done.stderr
    Dataset(tmp_path / "second", "train", base)
    assert read(tmp_path / "second", "train")["1"].audio[0].shape == (25, 80)
    done = prepare(*words, "--output", tmp_path / "third", "model.audio.meels=3")
    assert done.returncode == 2 and "did you mean model.audio.mels?" in done.stderr


BAD_ROWS = [
    ("{oops", "malformed JSON"),
    ("[1]", "not a JSON object"),
    ({"image": "a.png"}, "the id is missing"),
    ({"id": "x0", "image": "a\0.png"}, "no such image file"),
    ({"id": "good", "image": "b.png"}, "has been used before"),
    ({"id": "x1", "image": "absent.png"}, "absent.png: no such image file"),
    ({"id": "x2", "image": "broken.png"}, "broken.png: not a readable image"),
    ({"id": "x3", "image": "a.png", "audio": "broken.wav"}, "broken.wav: not a readable audio file"),
    ({"id": "x4", "image": "a.png", "audio": "absent.wav"}, "absent.wav: no such audio file"),
    ({"id": "x5", "image": "a.png", "caption": "  "}, "a caption is empty"),
    ({"id": "x6", "image": "a.png", "captions": ["a", 1]}, "neither a text nor a list"),
    ({"id": "x7", "image": "a.png", "captions": ["a", "b"], "audio": ["a.wav"]}, "2 captions but 1 audio clips"),
    ({"id": "y0", "image": "a.png", "audio": [["a.wav", "a.wav"]]}, "2 recordings have no caption"),
    ({"id": "y1", "image": "a.png", "caption": "a", "audio": [[]]}, "neither a path nor a list of paths, lists"),
    ({"id": "y2", "image": "a.png", "caption": "a", "audio": ["a.wav", "a.wav"]}, "several of one caption as a list"),
    ({"id": "x8"}, "neither image nor caption nor audio"),
    ({"id": "x9", "image": "a.png", "captoin": "a"}, "unknown key 'captoin'"),
    ({"id": "x10", "image": "a.png", "caption": "a", "captions": ["a"]}, "both a caption and captions"),
    ({"id": "x11", "image": "a.png", "split": "a/b"}, "the split 'a/b' is none of train, dev, test"),
]


def test_bad_rows_are_listed(tmp_path: Path, media: Path) -> None:
    manifest = write_rows(tmp_path / "m.jsonl", [{"id": "good", "image": "a.png"}, *(row for row, _ in BAD_ROWS)])
    output = tmp_path / "out"
    failed = prepare("manifest", "--input", manifest, "--media", media, "--output", output)
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[-1].startswith("error: 19 of 20 rows are bad, more than --max-bad 0.01 allows")
    with pytest.raises(DataError, match="no finished dataset"):
        read_info(output)
    done = prepare("manifest", "--input", manifest, "--media", media, "--output", output, "--max-bad", "1")
    assert done.returncode == 0 and "rejected rows: 19" in done.stdout
    rejected = [json.loads(line) for line in (output / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [entry["line"] for entry in rejected] == list(range(2, 2 + len(BAD_ROWS)))
    for entry, (_, reason) in zip(rejected, BAD_ROWS, strict=True):
        assert reason in entry["reason"] and entry["file"] == "m.jsonl"
    assert read_info(output)["splits"].keys() <= {"train", "dev", "test"}


def test_coco(tmp_path: Path, media: Path) -> None:
    def annotations(name: str, images: list[str], captions: list[tuple[int, str]]) -> Path:
        content = {
            "images": [{"id": index, "file_name": name} for index, name in enumerate(images)],
            "annotations": [{"id": 7, "image_id": owner, "caption": text} for owner, text in captions],
        }
        path = tmp_path / name
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    train = annotations("train.json", ["a.png", "b.png"], [(0, "one"), (1, "two\n"), (0, "three"), (9, "lost")])
    test = annotations("test.json", ["c.png", "broken.png"], [(0, "four")])
    output = tmp_path / "out"
    done = prepare(
        *("coco", "--annotations", train, "--images", media, "--split", "train", "--annotations", test),
        *("--images", media, "--split", "test", "--output", output, "--max-bad", "0.5"),
    )
    assert done.returncode == 0, done.stderr
    assert {key: record.captions for key, record in read(output, "train").items()} == {
        "train/0": ("one", "three"),
        "train/1": ("two",),
    }
    assert read(output, "test").keys() == {"test/0"}
    reasons = [json.loads(line)["reason"] for line in (output / "rejected.jsonl").read_text().splitlines()]
    assert "belongs to image 9" in reasons[0] and "broken.png: not a readable image" in reasons[1]
    uneven = prepare("coco", "--annotations", train, "--images", media, "--images", media, "--output", output)
    assert uneven.returncode == 2 and uneven.stderr.startswith("error: 1 --annotations but 2 --images")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("manifest", "--input", "absent.jsonl", "--output", "o"), "error: --input absent.jsonl: no such file"),
        (("coco", "--annotations", "absent.json", "--images", ".", "--output", "o"), "absent.json: no such file"),
        (("coco", "--annotations", "absent.json", "--images", "nowhere", "--output", "o"), "nowhere: no such folder"),
        (("manifset",), "invalid choice"),
        (("demo", "--output", "README.md/x", "--no-speech"), "error: README.md/x: Not a directory"),
    ],
)
def test_errors_are_one_line(arguments: tuple[str, ...], message: str) -> None:
    failed = prepare(*arguments)
    assert failed.returncode == 2 and message in failed.stderr.splitlines()[-1]
    assert "Traceback" not in failed.stderr


def test_split_is_by_content_alone() -> None:
    splits = [common.split_by_digest(digest(b"%d" % index), 0.1, 0.2) for index in range(4000)]
    assert splits == [common.split_by_digest(digest(b"%d" % index), 0.1, 0.2) for index in range(4000)]
    assert abs(splits.count("dev") - 400) < 80 and abs(splits.count("test") - 800) < 110


def test_the_shares_are_those_of_the_range_of_digests() -> None:
    """dev, then test, then train."""
    places = [0.0, 0.0999, 0.1001, 0.2999, 0.3001, 0.9999]
    splits = [common.split_by_digest(int(place * 2**64), 0.1, 0.2) for place in places]
    assert splits == ["dev", "dev", "test", "test", "train", "train"]
    assert common.split_by_digest(1, 0.0, 0.0) == "train" and common.split_by_digest(1, 0.0, 0.5) == "test"


def packed(path: Path, max_side: int) -> bytes:
    return reading.pack_image(path.read_bytes(), path, max_side)


def test_large_images_are_stored_smaller(tmp_path: Path) -> None:
    pixels = np.zeros((40, 100, 3), np.uint8)
    pixels[:, :50] = 255
    image = Image.fromarray(pixels)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned by 90°
    image.save(tmp_path / "p.jpg", exif=turned)
    image.save(tmp_path / "p.png")
    small = Image.open(io.BytesIO(packed(tmp_path / "p.jpg", 50)))
    assert small.format == "JPEG" and small.size == (20, 50) and not small.getexif()
    assert np.asarray(small)[5].mean() > 200 > 50 > np.asarray(small)[45].mean()
    assert Image.open(io.BytesIO(packed(tmp_path / "p.png", 50))).format == "PNG"
    image.save(tmp_path / "as it is.png", compress_level=0)
    kept = packed(tmp_path / "as it is.png", 100)
    assert kept == (tmp_path / "as it is.png").read_bytes(), "an image of just that size stays the file that it is"


def test_rows_are_counted_and_the_share_of_bad_ones_may_be_reached(tmp_path: Path) -> None:
    with Tally(tmp_path / "rejected.jsonl", english=True) as tally:
        tally.store(Row("m", 1, "a", captions=("一", "two", "three"), translated=1), moved=True)
        tally.store(Row("m", 2, "b", captions=("四",), translated=1), moved=True)
        for number in (3, 4):
            tally.reject(Row("m", number, "c"), "broken")
        tally.check(0.5, tmp_path)
        with pytest.raises(DataError, match="2 of 4 rows are bad.*the first is m:3: broken"):
            tally.check(0.49, tmp_path)
        tally.unused = ["7", "8", "9"]
        found = tally.about()
    counts = {"rows": 4, "rejected": 2, "moved": 2, "translated": 2, "english": 2, "unused_translations": 3}
    assert found == counts
