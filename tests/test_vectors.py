"""tools/embed.py: vectors and names of folders, texts and manifests; an interrupted call ends as any other."""

import itertools
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from src.checkpoints.places import locate
from src.data.errors import DataError
from src.inference import load, vectors
from src.inference.library import Model
from tests.commands import Run, command, make_home
from tests.oracles import run_mode
from tools import embed

CAPTIONS = ["一只猫", "两只狗", "三条鱼", "红色背景", "小苹果", "黄色的鱼", "上边有一只猫", "大狗", "个个大小"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_home(tmp_path_factory.mktemp("embed"))
    (folder / "captions.txt").write_text("\ufeff" + "\n\n".join(CAPTIONS) + "\n", encoding="utf-8")
    rows = [
        {"id": "x", "image": "a.png", "captions": CAPTIONS[:2], "audio": ["a.WAV", None]},
        {"id": 7, "image": "broken.jpg", "caption": CAPTIONS[2]},
        {"image": "b.png"},
        {"captions": [CAPTIONS[3]], "audio": [["b.WAV", "c.WAV"]]},
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "manifest.jsonl").write_text("\n".join([*lines[:2], "{", "[]", *lines[2:]]), encoding="utf-8")
    return folder


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Iterator[Run]:
    with command(embed.main, home, monkeypatch, capsys) as call:
        yield lambda *arguments: call("--checkpoint", "run", *arguments, "runtime.mode=pynative")


@pytest.fixture(scope="module")
def model(home: Path) -> Iterator[Model]:
    with run_mode("pynative"):
        yield load(home / "run", ["runtime.mode=pynative"])


def names_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_folder(run: Run, home: Path, model: Model) -> None:
    code, out, err = run("--input", "gallery", "--output", "out/all.npy")
    assert code == 0 and "all.npy: 7 vectors of 12 numbers; skipped items: 1" in out
    assert "skipped: gallery/broken.jpg: not a readable image" in err
    names, found = names_of(home / "out" / "all.jsonl"), np.load(home / "out" / "all.npy")
    assert [one["name"] for one in names] == ["a.WAV", "a.png", "b.WAV", "b.png", "c.WAV", "c.png", "words.txt"]
    assert found.dtype == np.float32 and found.shape == (7, 12)
    for kind, call in (("text", model.embed_text), ("image", model.embed_image), ("audio", model.embed_audio)):
        rows = [at for at, one in enumerate(names) if one["kind"] == kind]
        files = [home / "gallery" / names[at]["name"] for at in rows]
        np.testing.assert_allclose(found[rows], call(files), atol=1e-6)
    assert sorted(path.name for path in (home / "out").iterdir()) == ["all.jsonl", "all.npy"]


def test_texts_and_a_manifest(run: Run, home: Path, model: Model) -> None:
    code, _, err = run("--input", "captions.txt", "--output", "texts.npy")
    assert code == 0 and "note: of 3 items the model reads only a part" in err  # it knows no 两, 条, 的
    assert names_of(home / "texts.jsonl") == [{"kind": "text", "name": text} for text in CAPTIONS]
    np.testing.assert_allclose(np.load(home / "texts.npy"), model.embed_text(CAPTIONS), atol=1e-6)
    code, out, err = run("--input", "manifest.jsonl", "--media", "gallery", "--output", "rows.npy")
    assert code == 0 and "rows.npy: 9 vectors" in out and "skipped items: 3" in out
    assert "manifest.jsonl, line 3: malformed JSON" in err and "line 4: expected an object" in err
    assert names_of(home / "rows.jsonl") == [
        {"kind": "text", "name": CAPTIONS[0], "id": "x"},
        {"kind": "text", "name": CAPTIONS[1], "id": "x"},
        {"kind": "image", "name": "a.png", "id": "x"},
        {"kind": "audio", "name": "a.WAV", "id": "x"},
        {"kind": "text", "name": CAPTIONS[2], "id": "7"},
        {"kind": "image", "name": "b.png"},
        {"kind": "text", "name": CAPTIONS[3]},
        {"kind": "audio", "name": "b.WAV"},
        {"kind": "audio", "name": "c.WAV"},
    ]
    assert run("--input", "manifest.jsonl", "--media", "gallery", "--only", "image", "--output", "two.npy")[0] == 0
    assert [one["name"] for one in names_of(home / "two.jsonl")] == ["a.png", "b.png"]
    np.testing.assert_allclose(np.load(home / "two.npy"), np.load(home / "rows.npy")[[2, 5]], atol=1e-6)


def test_no_file_but_an_earlier_calls_names_is_replaced(run: Run, home: Path) -> None:
    """The names stand in the .jsonl of the vectors' name: of a manifest too that lies beside them, or is the input."""
    (home / "own.txt").write_text("一只猫\n", encoding="utf-8")
    for content in ('{"id": "1", "captions": ["一只猫"]}\n', "[]\n", '"kind name"\n', "{", ""):
        (home / "own.jsonl").write_text(content, encoding="utf-8")
        for source in ("own.jsonl", "own.txt"):
            code, _, err = run("--input", source, "--output", "own.npy")
            assert code == 2 and "--output own.npy would replace own.jsonl, which holds no names of vectors" in err
            assert (home / "own.jsonl").read_text(encoding="utf-8") == content and not (home / "own.npy").exists()
    (home / "own.jsonl").unlink()
    for _ in range(2):
        assert run("--input", "own.txt", "--output", "own.npy")[0] == 0
        assert names_of(home / "own.jsonl") == [{"kind": "text", "name": "一只猫"}]


def test_an_array_or_table_of_the_user_is_not_replaced(run: Run, home: Path) -> None:
    pa, pq = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    (home / "one.txt").write_text("一只猫\n", encoding="utf-8")
    np.save(home / "theirs.npy", np.arange(3))
    pq.write_table(pa.table({"kind": ["text"], "size": [1]}), home / "theirs.parquet")
    (home / "broken.parquet").write_bytes(b"none")
    for name in ("theirs.npy", "theirs.parquet", "broken.parquet"):
        content = (home / name).read_bytes()
        code, _, err = run("--input", "one.txt", "--output", name)
        assert code == 2 and f"--output {name} is there and was not written by this command: name another" in err
        assert (home / name).read_bytes() == content and not (home / "theirs.jsonl").exists()
    for _ in range(2):
        for name in ("ours.npy", "ours.parquet"):
            assert run("--input", "one.txt", "--output", name)[0] == 0


class Killed(BaseException):
    pass


def killed_after(groups: int, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """From so many groups on every call ends as by a kill."""
    done, embed_group = [], vectors.embed_group

    def mortal(*arguments):
        if len(done) == groups:
            raise Killed
        done.append(1)
        return embed_group(*arguments)

    monkeypatch.setattr(vectors, "embed_group", mortal)
    return monkeypatch


@pytest.mark.parametrize("groups", [0, 1, 2])
def test_an_interrupted_call_goes_on(model: Model, home: Path, groups: int, tmp_path: Path) -> None:
    """What a kill left half written behind the last whole group is gone; nothing whole is made again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "GROUP", 4)
        checkpoint, source = locate(home / "run"), home / "captions.txt"
        vectors.embed_input(model, checkpoint, source, tmp_path / "whole.npy")
        with pytest.MonkeyPatch.context() as kill, pytest.raises(Killed):
            killed_after(groups, kill)
            vectors.embed_input(model, checkpoint, source, tmp_path / "cut.npy")
        work = tmp_path / ".writing-cut.npy"
        for name in ("vectors.npy", "names.jsonl"):
            with open(work / name, "ab") as file:
                file.write(b"half of a")
        assert not (tmp_path / "cut.npy").exists()
        counted = []
        embed_each = Model.embed_each
        patch.setattr(
            Model,
            "embed_each",
            lambda self, kind, items, *rest: counted.extend(items) or embed_each(self, kind, items, *rest),
        )
        vectors.embed_input(model, checkpoint, source, tmp_path / "cut.npy")
    assert counted == CAPTIONS[4 * groups :]
    for ending in (".npy", ".jsonl"):
        assert (tmp_path / f"cut{ending}").read_bytes() == (tmp_path / f"whole{ending}").read_bytes()
    assert not work.exists()


def test_what_was_skipped_counts_where_a_call_goes_on(model: Model, home: Path, tmp_path: Path) -> None:
    checkpoint, source = locate(home / "run"), home / "manifest.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "GROUP", 4)
        vectors.embed_input(model, checkpoint, source, tmp_path / "whole.npy", media=home)
        with pytest.MonkeyPatch.context() as kill, pytest.raises(Killed):
            killed_after(2, kill)
            vectors.embed_input(model, checkpoint, source, tmp_path / "cut.npy", media=home)
        state = json.loads((tmp_path / ".writing-cut.npy" / "state.json").read_text())
        assert state["items"] == 8 and state["skipped"] > 0
        vectors.embed_input(model, checkpoint, source, tmp_path / "cut.npy", media=home)
    for ending in (".npy", ".jsonl"):
        assert (tmp_path / f"cut{ending}").read_bytes() == (tmp_path / f"whole{ending}").read_bytes()


def test_a_kill_between_the_two_names_is_made_up_for(model: Model, home: Path, tmp_path: Path) -> None:
    checkpoint, source = locate(home / "run"), home / "captions.txt"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        replace, moved = vectors.os.replace, []

        def mortal(old: Path, new: Path) -> None:
            if Path(new).suffix == ".npy":
                raise Killed
            moved.append(new)
            replace(old, new)

        patch.setattr(vectors.os, "replace", mortal)
        vectors.embed_input(model, checkpoint, source, tmp_path / "a.npy")
    assert not (tmp_path / "a.npy").exists()
    vectors.embed_input(model, checkpoint, source, tmp_path / "a.npy")
    assert len(np.load(tmp_path / "a.npy")) == len(names_of(tmp_path / "a.jsonl")) == len(CAPTIONS)


@pytest.mark.parametrize("first", ["vectors.npy", "names.jsonl", "state.json"])
def test_a_kill_while_the_rest_is_removed_is_made_up_for(model: Model, home: Path, first: str, tmp_path: Path) -> None:
    """Whichever file goes first."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    checkpoint, source, output = locate(home / "run"), home / "captions.txt", tmp_path / "a.parquet"

    def mortal(folder: Path) -> None:
        (folder / first).unlink()
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(vectors.shutil, "rmtree", mortal)
        vectors.embed_input(model, checkpoint, source, output)
    vectors.embed_input(model, checkpoint, source, output)
    assert [row["name"] for row in parquet.read_table(output).to_pylist()] == CAPTIONS
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_another_works_beginning_is_left_alone(model: Model, home: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("一只猫\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as kill, pytest.raises(Killed):
        killed_after(0, kill)
        vectors.embed_input(model, locate(home / "run"), texts, tmp_path / "a.npy")
    for content in (json.dumps({"plan": "another"}), "{", "[3]", '{"plans": 3}'):
        (tmp_path / ".writing-a.npy" / "state.json").write_text(content)
        with pytest.raises(
            DataError, match=r"writing-a\.npy was begun with another model, another input or files that have"
        ):
            vectors.embed_input(model, locate(home / "run"), texts, tmp_path / "a.npy")
        assert (tmp_path / ".writing-a.npy" / "state.json").read_text() == content


def test_media_that_change_in_between_are_another_input(model: Model, home: Path, tmp_path: Path) -> None:
    """Of a manifest as of a folder, but for what is not asked for; what is no file's name is skipped as before."""
    media = shutil.copytree(home / "gallery", tmp_path / "media")
    rows = [
        {"image": "a.png", "captions": CAPTIONS[:2], "audio": ["b.WAV"]},
        {"image": "later.png", "audio": ["nul\0.wav", "\ud800.wav"]},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    checkpoint, output, work = locate(home / "run"), tmp_path / "a.npy", tmp_path / ".writing-a.npy"

    def embed_rows(source: str, only: str | None = None) -> None:
        vectors.embed_input(model, checkpoint, tmp_path / source, output, media=media, only=only)

    def replace_image() -> None:
        shutil.copy(media / "b.png", media / "a.png")

    changes = (replace_image, (media / "b.WAV").unlink, lambda: shutil.copy(media / "b.png", media / "later.png"))
    for source, change in [*itertools.product(("rows.jsonl",), changes), ("media", replace_image)]:
        shutil.copytree(home / "gallery", media, dirs_exist_ok=True)
        (media / "later.png").unlink(missing_ok=True)
        with pytest.MonkeyPatch.context() as kill, pytest.raises(Killed):
            kill.setattr(vectors, "GROUP", 1)
            killed_after(6, kill)
            embed_rows(source)
        assert json.loads((work / "state.json").read_text())["items"] == 6
        change()
        with pytest.raises(
            DataError, match=r"writing-a\.npy was begun with another model, another input or files that have"
        ):
            embed_rows(source)
        shutil.rmtree(work)
    with pytest.MonkeyPatch.context() as kill, pytest.raises(Killed):
        kill.setattr(vectors, "GROUP", 1)
        killed_after(1, kill)
        embed_rows("rows.jsonl", "text")
    (media / "a.png").unlink()
    embed_rows("rows.jsonl", "text")
    assert [one["name"] for one in names_of(tmp_path / "a.jsonl")] == CAPTIONS[:2]


def test_lines_that_are_not_utf8_are_named_and_the_others_read(
    model: Model, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Of a file of texts and of a manifest; a byte order mark is no text."""
    texts, rows = tmp_path / "texts.txt", tmp_path / "rows.jsonl"
    lines = ["\ufeff一只猫".encode(), "一只狗".encode("gb18030"), b"", "一条鱼".encode()]
    texts.write_bytes(b"\n".join(lines))
    rows.write_bytes(b'{"captions": ["' + b'"]}\n{"captions": ["'.join(lines[1::2]) + b'"]}\n')
    for source, number, kept in ((texts, 2, ["一只猫", "一条鱼"]), (rows, 1, ["一条鱼"])):
        output = tmp_path / f"{source.stem}-vectors.npy"
        vectors.embed_input(model, locate(home / "run"), source, output)
        assert f"skipped: {source}, line {number}: not UTF-8 text\n" in capsys.readouterr().err
        assert [one["name"] for one in names_of(output.with_suffix(".jsonl"))] == kept
        np.testing.assert_allclose(np.load(output), model.embed_text(kept), atol=1e-6)


@pytest.mark.parametrize("rows", [0, 3, 10**12])
def test_the_header_is_what_numpy_reads(rows: int, tmp_path: Path) -> None:
    header = vectors.npy_header(rows, 2048)
    assert len(header) == vectors.HEADER
    with open(tmp_path / "a.npy", "wb") as file:
        file.write(header)
    with open(tmp_path / "a.npy", "rb") as file:
        assert np.lib.format.read_magic(file) == (1, 0)
        assert np.lib.format.read_array_header_1_0(file) == ((rows, 2048), False, np.dtype("<f4"))
        assert file.tell() == vectors.HEADER


def test_parquet_holds_the_same(run: Run, home: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    for ending in (".npy", ".parquet"):
        assert run("--input", "manifest.jsonl", "--media", "gallery", "--output", f"same{ending}")[0] == 0
    table = parquet.read_table(home / "same.parquet").to_pylist()
    expected = names_of(home / "same.jsonl")
    assert [{key: row[key] for key in row if key != "vector" and row[key] is not None} for row in table] == expected
    np.testing.assert_array_equal(np.array([row["vector"] for row in table], np.float32), np.load(home / "same.npy"))


def test_parquet_asks_for_what_it_needs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr(vectors.importlib.util, "find_spec", lambda name: None)
    code, _, err = run("--input", "captions.txt", "--output", "a.parquet")
    assert code == 2 and "a.parquet: needs pyarrow: pip install pyarrow, or name an .npy" in err
    vectors.check_output(Path("a.npy"), Path("captions.txt"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--input", "none", "--output", "a.npy"), "--input none: no such file or folder"),
        (
            ("--input", "gallery/a.png", "--output", "a.npy"),
            "expected a folder, a .txt with a text a line, or a manifest",
        ),
        (("--input", "gallery", "--output", "a.csv"), "expected a name that ends in .npy or .parquet"),
        (("--input", "gallery", "--output", "gallery/x/a.npy"), "is inside --input gallery"),
        (("--input", "blank.txt", "--output", "a.npy"), "--input blank.txt is empty"),
        (("--input", "bad.jsonl", "--output", "a.npy"), "--input bad.jsonl: nothing of it can be read"),
    ],
)
def test_mistakes_are_one_line(run: Run, home: Path, arguments: tuple[str, ...], message: str) -> None:
    (home / "blank.txt").write_text("\n \n")
    (home / "bad.jsonl").write_text("{\n")
    code, _, err = run(*arguments)
    assert code == 2 and message in err.strip().splitlines()[-1] and "Traceback" not in err
    assert not (home / ".writing-a.npy").exists()
