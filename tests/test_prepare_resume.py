"""Preparing many rows: the same bytes whoever works and whoever is killed, and an image in one split alone."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from corpora import coco, contents, draw, prepare, read, speak, write_lines

from src.data import parts, writer
from src.data.errors import DataError
from src.data.prepare import media
from src.data.store import Dataset, read_info
from tools import prepare_data as command


def many_rows(folder: Path, rows: int) -> Path:
    """A manifest: a tenth of the rows bad, a fifth spoken, a quarter tell a side; every third image stands twice."""
    speak(folder / "a.ogg")
    lines: list[object] = []
    for number in range(rows):
        name = f"{number - (number % 3 == 2)}.png"
        if not (folder / name).exists():
            draw(folder / name)
        lines.append(
            {"id": str(number), "image": name, "caption": f"第{number}张{'在左边' if number % 4 == 0 else ''}"}
        )
        if number % 5 == 0:
            lines[-1]["audio"] = "a.ogg"
        if number % 10 == 9:
            lines[-1]["image"] = "gone.png"
    return write_lines(folder / "m.jsonl", lines)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[object], dict[str, bytes]]:
    """Arguments of a run of 60 rows, and what it writes with one worker."""
    folder = tmp_path_factory.mktemp("rows")
    output = folder / "out"
    arguments = ["manifest", "--input", many_rows(folder, 60), "--max-bad", 0.5, "--shard-records", 7]
    arguments += ["--dev-share", 0.2, "--test-share", 0.2, "--max-side", 16]  # all images are stored smaller
    prepare(*arguments, "--output", output, "--workers", 1)
    return arguments, contents(output)


def test_an_image_is_in_one_split(uninterrupted: tuple[list[object], dict[str, bytes]], tmp_path: Path) -> None:
    arguments, files = uninterrupted
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    info = read_info(tmp_path)
    assert info["splits"].keys() == {"train", "dev", "test"}
    assert sum(entry["records"] for entry in info["splits"].values()) == 54
    splits: dict[bytes, set[str]] = {}
    for split in info["splits"]:
        dataset = Dataset(tmp_path, split)
        for (_, _, image), record in zip(dataset.samples, dataset.read(dataset.samples[:, 0]), strict=True):
            splits.setdefault(record.image, set()).add(f"{split} {image}")
    assert len(splits) < 54 and all(len(places) == 1 for places in splits.values())


def test_an_image_follows_the_split_that_has_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    rows = [{"id": 1, "image": "a.png", "split": "train"}, {"id": 2, "image": "b.png", "split": "test"}]
    output = tmp_path / "out"
    prepare("manifest", "--input", write_lines(tmp_path / "m.jsonl", rows), "--output", output, "--workers", 1)
    assert read(output, "train").keys() == {"1", "2"} and read_info(output)["about"]["moved"] == 1
    assert "that already has their image: 1" in capsys.readouterr().out


def splits_of(folder: Path) -> dict[bytes, str]:
    """The split of every image, by its file's bytes, or of what has none by its caption's."""
    found = {}
    for split in read_info(folder)["splits"]:
        for record in read(folder, split).values():
            found[record.image or record.captions[0].encode()] = split
    return found


def test_the_image_alone_decides_its_split(tmp_path: Path) -> None:
    """Under another id and name, or in another corpus, an image is not trained on where it is tested elsewhere."""
    names = [f"{number}.png" for number in range(24)]
    for name in names:
        image = draw(tmp_path / "a" / name)
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "b" / f"copy-{name}").write_bytes(image.read_bytes())
    first = [{"id": name, "image": name} for name in names] + [{"id": f"t{n}", "caption": f"字{n}"} for n in range(24)]
    second: list[object] = [{"id": f"other {n}", "image": f"copy-{name}"} for n, name in enumerate(names)][::-1]
    found = []
    for folder, rows in (("a", first), ("b", second), ("b", second[5:])):
        manifest = write_lines(tmp_path / folder / "m.jsonl", rows)
        output = tmp_path / f"out-{len(found)}"
        shares = ("--dev-share", 0.25, "--test-share", 0.25)
        prepare("manifest", "--input", manifest, "--output", output, "--workers", 1, *shares)
        found.append(splits_of(output))
    assert set(found[0].values()) == {"train", "dev", "test"} and len(found[0]) == 48
    assert found[1] == {image: found[0][image] for image in found[1]} and len(found[1]) == 24
    assert found[2] == {image: found[0][image] for image in found[2]}, "rows that are added or left out change nothing"
    texts = {split for content, split in found[0].items() if content.startswith("字".encode())}
    assert len(texts) > 1, "what has no image goes by its id"


def test_an_image_that_is_stored_smaller_is_in_the_split_of_its_file(tmp_path: Path) -> None:
    names = [draw(tmp_path / f"{number}.png").name for number in range(24)]
    manifest = write_lines(tmp_path / "m.jsonl", [{"id": name, "image": name} for name in names])
    found = []
    for side in (512, 16, 8):
        output = tmp_path / f"out-{side}"
        shares = ("--dev-share", 0.25, "--test-share", 0.25, "--max-side", side)
        prepare("manifest", "--input", manifest, "--output", output, "--workers", 1, *shares)
        found.append({key: split for split in read_info(output)["splits"] for key in read(output, split)})
    assert found[0] == found[1] == found[2] and set(found[0].values()) == {"train", "dev", "test"}


def test_killed_and_resumed_by_several_workers(
    uninterrupted: tuple[list[object], dict[str, bytes]], tmp_path: Path
) -> None:
    arguments, wanted = uninterrupted
    run = [sys.executable, command.__file__, *map(str, arguments)]
    run += ["--output", str(tmp_path), "--workers", "3"]
    process = subprocess.Popen(run, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob(".part-*.npz")) and process.poll() is None:
        time.sleep(0.002)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it was too fast to be killed"
    kept = len(list(tmp_path.glob(".part-*.npz")))
    assert kept and not (tmp_path / "dataset.json").exists()
    done = subprocess.run([*run, "--resume"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path) == wanted
    assert len(workers) >= 3 and not any(map(is_alive, workers))


def is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class Killed(BaseException):
    """What no code of ours handles."""


@pytest.mark.parametrize("cut", [False, True])
def test_a_shard_that_is_gone_or_cut_is_made_again(
    uninterrupted: tuple[list[object], dict[str, bytes]], tmp_path: Path, cut: bool
) -> None:
    arguments, wanted = uninterrupted
    with pytest.raises(DataError, match="--max-bad"):
        prepare(*arguments, "--output", tmp_path, "--workers", 1, "--max-bad", 0)
    index = tmp_path / "train-00001.mindrecord.db"
    if cut:
        index.write_bytes(index.read_bytes()[:-1])
    else:
        index.unlink()
    (tmp_path / ".part-dev-00000.npz").unlink()
    prepare(*arguments, "--output", tmp_path, "--workers", 1, "--resume")
    assert contents(tmp_path) == wanted


@pytest.mark.parametrize(
    ("place", "calls"),
    [("sync", 1), ("write_part", 1), ("write_part", 4), ("describe", 9), ("os.replace", 3), ("write_text", 2)],
)
def test_resumed_from_a_kill_at_any_moment(
    uninterrupted: tuple[list[object], dict[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    calls: int,
) -> None:
    arguments, wanted = uninterrupted
    owner, name = (parts.os, "replace") if place == "os.replace" else (writer, place)
    function, count = getattr(owner, name), 0

    def failing(*values: object) -> object:
        nonlocal count
        count += 1
        if count == calls:
            raise Killed
        return function(*values)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, name, failing)
        prepare(*arguments, "--output", tmp_path, "--workers", 1)
    assert not (tmp_path / "dataset.json").exists()
    prepare(*arguments, "--output", tmp_path, "--workers", 1, "--resume")
    assert contents(tmp_path) == wanted


def test_rows_that_were_mended_stand_behind_finished_ones(tmp_path: Path) -> None:
    """Missing files are put in their places one after the other, each copies of an image of a later row."""
    names = [f"{number}.png" for number in range(40)]
    late = {3: 17, 21: 38}
    for number, name in enumerate(names):
        if number not in late:
            draw(tmp_path / "images" / name)
    lines: list[object] = [{"id": name, "image": name, "caption": name} for name in names]
    manifest = write_lines(tmp_path / "m.jsonl", lines)
    arguments = ["manifest", "--input", manifest, "--media", tmp_path / "images", "--shard-records", 3, "--workers", 1]
    arguments += ["--dev-share", 0.3, "--test-share", 0, "--output", tmp_path / "out", "--max-bad", 0]
    with pytest.raises(DataError, match="2 of 40 rows are bad"):
        prepare(*arguments)
    for left, (number, twin) in enumerate(late.items(), -1):
        (tmp_path / "images" / names[number]).write_bytes((tmp_path / "images" / names[twin]).read_bytes())
        if left:
            with pytest.raises(DataError, match="1 of 40 rows are bad"):
                prepare(*arguments, "--resume")
    prepare(*arguments, "--resume")
    assert not (tmp_path / "out" / "rejected.jsonl").exists()
    found = {split: read(tmp_path / "out", split) for split in ("train", "dev")}
    assert sorted([*found["train"], *found["dev"]]) == sorted(names)
    for split, records in found.items():
        for name, record in records.items():
            assert record.captions == (name,) and record.image == (tmp_path / "images" / name).read_bytes()
        for number, twin in late.items():
            assert (names[number] in records) == (names[twin] in records), split
        samples, keys = Dataset(tmp_path / "out", split).samples, list(records)
        images = {keys[record]: keys[image] for record, _, image in samples.tolist()}
        assert len(images) == len(samples) == len(records)
        for number, twin in late.items():
            assert names[number] not in records or images[names[number]] == images[names[twin]] == names[twin]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda lines: [lines[7], *lines[:7]], 1),  # a row in front
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], 2),
        (lambda lines: [*lines[:2], lines[2] | {"caption": "另一句话"}, *lines[3:]], 3),
        (lambda lines: [*lines[:3], lines[3] | {"split": "dev"}, *lines[4:]], 4),
        (lambda lines: [*lines[:3], lines[3] | {"id": ""}, *lines[4:]], 4),
        (lambda lines: [*lines[:4], lines[4] | {"image": "mended.png"}, *lines[5:], {"id": "8", "image": "8.png"}], 0),
    ],
    ids=["moved", "swapped", "another caption", "another split", "malformed", "mended and longer"],
)
def test_only_rejected_rows_may_change_before_resume(tmp_path: Path, change: Callable, line: int) -> None:
    """Rows are told by their place in the input: one that moved would be stored twice, another not at all."""
    lines: list[dict[str, str]] = [{"id": str(n), "image": f"{n}.png", "caption": f"第{n}张"} for n in range(8)]
    for name in ("mended.png", *(f"{n}.png" for n in range(9) if n != 4)):
        draw(tmp_path / name)
    manifest, output = write_lines(tmp_path / "m.jsonl", lines), tmp_path / "out"
    arguments = ["manifest", "--input", manifest, "--output", output, "--workers", 1, "--max-bad", 0]
    arguments += ["--shard-records", 2, "--dev-share", 0, "--test-share", 0]
    with pytest.raises(DataError, match="1 of 8 rows are bad"):
        prepare(*arguments)
    changed = change(lines)
    write_lines(manifest, changed)
    if line:
        with pytest.raises(DataError, match=f"m.jsonl:{line} is not what a finished shard holds of that row"):
            prepare(*arguments, "--resume")
        write_lines(manifest, lines[:5])
        with pytest.raises(DataError, match="the input has 5 rows, finished shards hold later ones: only rows that"):
            prepare(*arguments, "--resume", "--max-bad", 1)
        changed = [*lines[:4], {"id": "4", "image": "mended.png", "caption": "第4张"}, *lines[5:]]
        write_lines(manifest, changed)
    prepare(*arguments, "--resume")
    assert sorted(read(output, "train")) == [entry["id"] for entry in changed]
    assert read_info(output)["about"]["input"] == [{"name": "m.jsonl", "bytes": manifest.stat().st_size}]


def test_resume_refuses_another_form_of_sound(tmp_path: Path) -> None:
    speak(tmp_path / "a.ogg")
    lines: list[object] = [{"id": "1", "audio": "a.ogg", "caption": "你好"}, {"id": "2", "audio": "no.ogg"}]
    arguments = ["manifest", "--input", write_lines(tmp_path / "m.jsonl", lines), "--output", tmp_path / "out"]
    arguments += ["--workers", 1, "--shard-records", 1, "--dev-share", 0, "--test-share", 0, "--max-bad", 0]
    with pytest.raises(DataError, match="1 of 2 rows are bad"):
        prepare(*arguments)
    with pytest.raises(DataError, match="was begun with model.audio.input=fbank, now it is wav2vec2"):
        prepare(*arguments, "--resume", "model.audio.input=wav2vec2")


def test_resume_refuses_other_translations_and_splits(tmp_path: Path) -> None:
    """What is stored in finished shards, they would be told of as well."""
    given = coco(tmp_path / "coco").arguments
    beside = tmp_path / "more.tsv"
    beside.write_text("1\t一只猫\n", encoding="utf-8")
    without = [word for word in given if word not in ("--split", "train", "dev", "test")]
    cut = given.index("--translations")
    for first, then, message in (
        (given[:cut] + given[cut + 2 :], given, "was begun with translations=None, now it is"),
        (given, [*given[: cut + 1], beside, *given[cut + 2 :]], "was begun with translations=.*more.tsv"),
        (given, without, "was begun with splits=.*, now it is None"),
    ):
        output = tmp_path / message[15:30]
        begin = ["--output", output, "--workers", 1, "--max-bad", 0]
        with pytest.raises(DataError, match="rows are bad"):
            prepare("coco", *first, *begin)
        with pytest.raises(DataError, match=message):
            prepare("coco", *then, *begin, "--resume")


def test_resume_refuses_other_settings_and_keeps_what_a_failed_run_wrote(
    uninterrupted: tuple[list[object], dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, wanted = uninterrupted
    strict = [*arguments, "--output", tmp_path, "--workers", 1, "--max-bad", 0]
    with pytest.raises(DataError, match="6 of 60 rows are bad.*--resume with a larger one keeps.*m.jsonl:10: .*gone"):
        prepare(*strict)
    with pytest.raises(DataError, match="was begun with max_side=16, now it is 64"):
        prepare(*arguments, "--output", tmp_path, "--workers", 1, "--max-side", 64, "--resume")
    with pytest.raises(DataError, match="was begun with shard_records=7, now it is 8"):
        prepare(*arguments, "--output", tmp_path, "--workers", 1, "--shard-records", 8, "--resume")
    kept, opened = sorted(tmp_path.glob(".part-*.npz")), []
    read_bytes = media.read_bytes
    monkeypatch.setattr(media, "read_bytes", lambda path, kind: opened.append(path) or read_bytes(path, kind))
    prepare(*arguments, "--output", tmp_path, "--workers", 1, "--resume")
    assert len(opened) == 60 - 7 * len(kept) < 40  # rows of finished shards are not read again
    assert contents(tmp_path) == wanted
    (tmp_path / "dataset.json").unlink()
    (tmp_path / ".part-train-00000.npz").write_bytes(b"PK")
    (tmp_path / ".progress.json").write_text("{}")
    with pytest.raises(DataError, match="progress.json does not describe an unfinished dataset"):
        prepare(*arguments, "--output", tmp_path, "--workers", 1, "--resume")
    with pytest.raises(
        DataError, match=".part-train-00000.npz is damaged, or of an earlier version: begin without --resume"
    ):
        parts.read_part(tmp_path / ".part-train-00000.npz")
