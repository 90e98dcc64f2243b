"""Every corpus from its download layout to a trained step, and what becomes of bad rows."""

import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from operator import length_hint
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import soundfile
from conftest import CHARACTERS
from corpora import LAYOUTS, Dying, Layout, draw, prepare, read, rejected, speak, write_json, write_lines
from oracles import tiny_model
from PIL import Image

from src.config import OBJECTIVES, AudioEncoderConfig, Config, ObjectivesConfig, OptimizerConfig, WeightsConfig, to_yaml
from src.data.digests import DigestTable, digest
from src.data.errors import DataError
from src.data.pipeline import Loader
from src.data.prepare import common, karpathy, localized_narratives, questions
from src.data.prepare.caption_lines import join_words, read_captions
from src.data.prepare.rows import Row
from src.data.prepare.translations import Translations
from src.data.prepare.workers import CHUNK, CHUNKS_AHEAD, ordered_map
from src.data.record import Question, Record
from src.data.store import read_info
from src.data.tokenizer import SPECIALS
from src.data.writer import DatasetWriter
from src.models.opt import OPT
from src.objectives.objectives import Objectives
from src.training.muon import build_optimizer
from src.training.schedule import learning_rates
from src.training.step import TrainStep
from src.training.trainer import trained_parameters
from tests.oracles import take
from tools import prepare_data as command

B = 4


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    vocab = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    vocab.write_text("\n".join([*SPECIALS, *CHARACTERS]) + "\n", encoding="utf-8")
    model = replace(tiny_model(), masked_features=False, image_codes=False)
    model = replace(model, text=replace(model.text, vocab=str(vocab)))
    weights = {**dict.fromkeys(OBJECTIVES, 0.0), "contrastive": 1.0}
    objectives = ObjectivesConfig(weights=WeightsConfig(**weights))
    return replace(Config(), model=model, objectives=objectives)


@pytest.fixture(scope="module")
def step(config: Config) -> Iterator[TrainStep]:
    """One compiled step for all corpora: their batches have the same shapes."""
    mode = ms.get_context("mode")
    ms.set_context(mode=ms.GRAPH_MODE)
    model = OPT(config.model, len(SPECIALS) + len(CHARACTERS))
    objectives = Objectives(model, config.objectives, B)
    optimizer = OptimizerConfig(lr=1e-3, warmup_steps=2)
    update = build_optimizer(trained_parameters(model, objectives), optimizer, learning_rates(optimizer, 100))
    yield TrainStep(objectives, update, 1.0)
    ms.set_context(mode=mode)


@pytest.mark.parametrize("name", LAYOUTS)
def test_from_download_to_a_trained_step(
    name: str, tmp_path: Path, config: Config, step: TrainStep, capsys: pytest.CaptureFixture[str]
) -> None:
    layout: Layout = LAYOUTS[name](tmp_path / "download")
    settings, output = tmp_path / "config.yaml", tmp_path / "out"
    settings.write_text(to_yaml(config), encoding="utf-8")
    prepare(name, *layout.arguments, *("--output", output, "--config", settings, "--workers", 1, "--max-bad", 0.9))
    found = {split: {key: record.captions for key, record in read(output, split).items()} for split in layout.records}
    assert found == layout.records
    info = read_info(output)
    assert info["splits"].keys() == layout.records.keys()
    reasons = [entry["reason"] for entry in rejected(output)]
    assert len(reasons) == len(layout.rejected), reasons
    for reason, wanted in zip(reasons, layout.rejected, strict=True):
        assert wanted in reason
    about = info["about"]
    assert about["source"] == name and about["rejected"] == len(reasons) and about["moved"] == 0
    rows = sum(map(len, layout.records.values()))
    assert about["rows"] == rows + len(reasons)
    texts = [caption for split in layout.records.values() for captions in split.values() for caption in captions]
    if "english" in about:
        assert about["english"] == sum(caption.isascii() for caption in texts)
        assert about["translated"] == len(texts) - about["english"] > 0
        assert about["unused_translations"] == 1
        assert re.search("^translations that no caption used: 1, the first one of id '", capsys.readouterr().out, re.M)
    assert info["splits"]["train"]["audio"] == layout.spoken
    data = replace(config.data, path=str(output), batch_size=B, workers=1)
    batch = next(Loader(replace(config, data=data), "train").batches())
    result = take(step, batch)
    assert result.losses["contrastive"] > 0 and np.isfinite(result.norm)


def test_the_documented_commands(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
    found = re.findall(r"^python tools/prepare_data\.py ([a-z][\w-]*)((?:.*\\\n)*.*)", text, re.MULTILINE)
    assert {name for name, _ in found} == command.CORPORA.keys() - {"demo"}
    for name, options in (*found, ("demo", "")):
        with pytest.raises(SystemExit, match="^0$"):
            prepare(name, "--help")
        shown = capsys.readouterr().out
        assert all(re.search(rf"{option}\b", shown) for option in re.findall(r"--[\w-]+", options)), name
        assert "--config FILE" in shown and "[key=value ...]" in shown, name


def test_images_and_audio_of_every_kind(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    image = Image.fromarray(pixels)
    turned = Image.Exif()
    turned[0x0112] = 6
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    image.convert("P").save(tmp_path / "palette.png", transparency=3)
    image.convert("RGBA").save(tmp_path / "alpha.webp")
    image.convert("LA").save(tmp_path / "grey-alpha.png")
    Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    image.resize((900, 300)).save(tmp_path / "wide.webp")
    image.save(tmp_path / "turned.jpg", exif=turned)
    image.resize((1, 1)).save(tmp_path / "dot.png")
    speak(tmp_path / "a.wav", 8000, 2, subtype="PCM_24")
    speak(tmp_path / "b.flac", 44100, 6)
    speak(tmp_path / "c.ogg", 22050)
    speak(tmp_path / "d.mp3", 48000, 2)
    rows = [{"id": p.name, "image": p.name} for p in tmp_path.iterdir() if p.suffix in (".jpg", ".png", ".webp")]
    rows += [{"id": p.name, "audio": p.name} for p in tmp_path.iterdir() if p.suffix not in (".jpg", ".png", ".webp")]
    rows = [{**row, "split": "train"} for row in sorted(rows, key=lambda row: row["id"])]
    output = tmp_path / "out"
    prepare("manifest", "--input", write_lines(tmp_path / "m.jsonl", rows), "--output", output, "--workers", 1)
    records = read(output, "train")
    assert len(records) == len(rows) == 12
    frames = {len(record.audio[0]) for record in records.values() if record.audio and record.audio[0] is not None}
    assert max(frames) - min(frames) <= 4  # a second's half in each; mp3 and Vorbis pad a little


def bomb(path: Path, side: int) -> Path:
    """The head of a PNG that says it is so large."""
    Image.new("1", (8, 8)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    return path


def test_one_bad_byte_loses_one_row(tmp_path: Path) -> None:
    rows: list[object] = [{"id": str(n), "image": f"{n}.png", "audio": f"{n}.wav", "split": "train"} for n in range(6)]
    for number in range(6):
        draw(tmp_path / f"{number}.png")
        speak(tmp_path / f"{number}.wav")
    spoil(tmp_path / "1.png", 60)
    spoil(tmp_path / "2.wav", 0)
    bomb(tmp_path / "4.png", 12000)
    speak(tmp_path / "5.wav")
    data = bytearray((tmp_path / "5.wav").read_bytes())
    data[24:28] = (1 << 30).to_bytes(4, "little")  # Hz
    (tmp_path / "5.wav").write_bytes(data)
    manifest = write_lines(tmp_path / "m.jsonl", rows)
    place = manifest.read_text().splitlines(keepends=True)
    spoil(manifest, sum(map(len, place[:3])), 1)
    rows_bad = [b'{"id": "\xff"}\n', b'{"id": "\\ud800", "caption": "a", "split": "train"}\n']
    manifest.write_bytes(manifest.read_bytes() + b"".join(rows_bad))
    output = tmp_path / "out"
    arguments = ("manifest", "--input", manifest, "--output", output, "--workers", 1)
    with pytest.raises(DataError, match="7 of 8 rows are bad.*m.jsonl:2: .*1.png: not a readable image"):
        prepare(*arguments)
    prepare(*arguments, "--max-bad", 0.9)
    assert read(output, "train").keys() == {"0"}
    wanted = {2: "1.png: not a readable", 3: "2.wav: not a readable audio", 4: "malformed JSON", 5: "pixels", 6: "Hz"}
    wanted |= {7: "not UTF-8", 8: "not valid Unicode"}
    found = {entry["line"]: entry["reason"] for entry in rejected(output)}
    assert found.keys() == wanted.keys()
    assert all(part in found[line] for line, part in wanted.items()), found


def spoil(path: Path, place: int, bits: int = 0xFF) -> None:
    """Turns bits of one byte around."""
    data = bytearray(path.read_bytes())
    data[place] ^= bits
    path.write_bytes(data)


def test_translations(tmp_path: Path) -> None:
    lines = [
        {"id": 7, "caption": " 七 "},
        {"id": "8"},
        {"caption": "x"},
        "[",
        {"id": 9, "caption": ""},
        {"id": "7", "caption": "又"},
    ]
    chinese = Translations(write_lines(tmp_path / "zh.jsonl", lines))
    assert chinese.apply([(7, "seven"), ("8", "eight")]) == (("七", "eight"), 1) and len(chinese) == 1
    wanted = ["not a text", "id is missing", "malformed JSON", "is empty", "before"]
    assert [row.line for row in chinese.rejected] == [2, 3, 4, 5, 6]
    assert all(part in row.reason for part, row in zip(wanted, chinese.rejected, strict=True))
    assert Translations(None).apply([(1, "one")]) == (("one",), 0)
    with pytest.raises(DataError, match="--translations .*none.tsv: no such file"):
        Translations(tmp_path / "none.tsv")


def test_a_translation_may_name_the_split_as_the_command_does(tmp_path: Path) -> None:
    lines = ["val/0\t零", "dev/1\t一", "validation/2\t二", "valid/1\t又", "test/9\t九"]
    chinese = Translations(write_lines(tmp_path / "zh.tsv", list(lines)), by_split=True)
    assert chinese.apply([(f"dev/{row}", "en") for row in range(4)]) == (("零", "一", "二", "en"), 3)
    assert [row.line for row in chinese.rejected] == [4] and "before" in chinese.rejected[0].reason
    assert chinese.unused() == ["test/9"]
    plain = Translations(write_lines(tmp_path / "zh.tsv", list(lines)))
    assert plain.apply([("dev/0", "en"), ("val/0", "en")]) == (("en", "零"), 1) and len(plain.unused()) == 4


def test_narratives_in_pieces(tmp_path: Path) -> None:
    draw(tmp_path / "1.jpg")
    wave = np.repeat([0.0, 0.5, 0.1], 16000) * np.sin(np.arange(48000))
    soundfile.write(tmp_path / "n.ogg", wave, 16000)
    times = ((0.0, 0.4, "In this"), (0.5, 0.9, "image"), (1.0, 1.9, "I see"), (2.05, 2.05, "a"), (2.1, 2.9, "cat."))
    timed = [{"start_time": start, "end_time": end, "utterance": text} for start, end, text in times]
    whole = {"image_id": "1", "annotator_id": 4, "caption": "x", "timed_caption": timed, "voice_recording": "n.ogg"}
    late = [{"start_time": 9, "end_time": 10, "utterance": "late"}]
    rows = [whole, {**whole, "annotator_id": 5, "timed_caption": []}]
    rows += [{**whole, "annotator_id": 6, "timed_caption": [{**timed[0], "end_time": -1}]}]
    rows += [{**whole, "annotator_id": 7, "timed_caption": late}]
    file, chinese = write_lines(tmp_path / "n.jsonl", rows), write_lines(tmp_path / "zh.tsv", ["1/4/1\t我看见"])
    arguments = (
        "--annotations",
        file,
        "--images",
        tmp_path,
        "--split",
        "train",
        "--recordings",
        tmp_path,
        "--workers",
        1,
    )
    arguments += ("--output", tmp_path / "out", "--max-bad", 0.9, "--translations", chinese)
    prepare("localized-narratives", *arguments, "--pieces", 1)
    record = read(tmp_path / "out", "train")["1/4"]
    assert record.captions == ("In this image", "我看见", "a cat.")
    assert [len(clip) for clip in record.audio] == [45, 45, 43]  # 0.9 s, and 0.85
    assert not record.audio[0][:40].any() and record.audio[1].any(axis=1).all()  # silence, then the loud second
    reasons = [entry["reason"] for entry in rejected(tmp_path / "out")]
    assert "not a list of utterances" in reasons[0] and "times are not in order" in reasons[1]
    assert "n.ogg: the audio is empty after 9.0 s" in reasons[2]
    with pytest.raises(DataError, match="--pieces must be more than 0"):
        prepare("localized-narratives", *arguments, "--pieces", 0)


def test_an_utterance_without_text_costs_only_itself() -> None:
    """It makes no piece of its own, neither begins nor ends another one, and pieces are counted without it."""

    def timed(*utterances: tuple[str, float, float]) -> list[dict[str, object]]:
        return [dict(zip(localized_narratives.TIMED, utterance, strict=True)) for utterance in utterances]

    alone = timed(("a", 0, 2), ("", 5, 6), ("b", 9, 11))
    assert localized_narratives.cut(alone, 3) == [("a", 0, 2), ("b", 9, 11)]
    joined = timed((" ", 0, 1), ("a", 1, 2), ("\n", 2, 3), ("b", 3, 4), ("", 4, 5))
    assert localized_narratives.cut(joined, 3) == [("a b", 1, 4)]
    with pytest.raises(DataError, match="no utterance of the timed_caption has a text"):
        localized_narratives.cut(timed(("", 0, 1), (" ", 1, 2)), 3)


def test_a_worker_that_dies_is_one_line(tmp_path: Path) -> None:
    rows = iter([Row("m.jsonl", number) for number in range(1, 4)])
    with DatasetWriter(tmp_path, AudioEncoderConfig(), {}) as writer:
        with pytest.raises(DataError, match="a worker process died at or after m.jsonl:1.*fewer --workers.*--resume"):
            list(common._results(writer, rows, Dying(), 2))
        writer.add("train", Record("r", None, ("字",), ()))


def test_a_null_is_a_key_that_is_missing(tmp_path: Path) -> None:
    asked = {"image": "a.png", "question": "几只猫？", "answers": "两只"}
    entries = [asked, {**asked, **dict.fromkeys(("id", "type", "audio", "split", "comment"))}]
    files = [write_lines(tmp_path / str(number) / "q.jsonl", [entry]) for number, entry in enumerate(entries)]
    missing, null = (list(questions.read_rows(file, tmp_path)) for file in files)
    assert missing == null and missing[0].questions == (Question("question", ("两只",)),)
    entry = {"filename": "a.png", "split": "train", "sentences": [{"raw": "a cat"}]}
    images = [entry, {**entry, "filepath": None}]
    missing, null = (next(karpathy._rows([image], "k.json", tmp_path, Translations(None))) for image in images)
    assert missing == null and missing.image == tmp_path / "a.png"


def test_words_are_joined() -> None:
    assert join_words("两个:CD 男人:NN ， 一辆:CD 车:NN") == "两个男人，一辆车" and join_words("一只 猫") == "一只猫"


def test_images_are_named_without_ending_and_number_of_the_caption(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text("1.jpg#zhm#0 一只猫\n1.jpg#1\t两 只 狗\n\nCOCO_2#0 三条鱼\n3.jpg 四\n", encoding="utf-8")
    found = list(read_captions(path))
    assert found == [(1, "1", "一只猫"), (2, "1", "两 只 狗"), (4, "COCO_2", "三条鱼"), (5, "3", "四")]
    assert list(read_captions(path, segmented=True))[1] == (2, "1", "两只狗")


def test_digest_table_is_a_dict() -> None:
    rng = np.random.default_rng(0)
    table, plain = DigestTable(), {}
    for number in range(5000):
        key = digest(rng.integers(0, 3000).tobytes())
        assert table.get(key) == plain.get(key)
        assert table.setdefault(key, number) == plain.setdefault(key, number)
    assert len(table) == len(plain) and all(table.get(key) == value for key, value in plain.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("coco", "--annotations", "a", "--images", ".", "--split", "trian"),
            "the split 'trian' is none of train, dev, test",
        ),
        (("cc3m", "--annotations", "README.md", "--images", ".", "--name", "x.jpg"), "must contain the row"),
        (("cc3m", "--annotations", "README.md", "--images", ".", "--name", "{x}.jpg"), "only the row can be replaced"),
        (
            ("cc3m", "--annotations", "README.md", "--images", ".", "--mapping", "README.md", "--mapping", "x"),
            "x: no such",
        ),
        (
            ("cc3m", *("--annotations", "README.md", "--images", "."), *("--mapping", "README.md") * 2),
            "1 --annotations but 2 --mapping: give one for each, or none at all",
        ),
        (
            ("localized-narratives", "--annotations", "README.md", "--images", ".", "--name", "{x}"),
            "only {image_id} can be replaced",
        ),
        (
            ("localized-narratives", "--annotations", "README.md", "--images", ".", "--name", "x.jpg"),
            "it must contain the image, as in {image_id}.jpg",
        ),
        (("cc3m", "--annotations", "README.md", "--images", ".", "--dev-share", "nan"), "must not be negative"),
        (("aic", "--annotations", "README.md", "--images", "."), "README.md is not JSON"),
        (("karpathy", "--input", "README.md", "--images", "."), "README.md is not JSON"),
        (("coco-cn", "--annotations", ".", "--images", "."), "coco-cn_train.txt: no such file"),
        (("manifest", "--input", "README.md", "--shard-records", "0"), "--shard-records must be at least 1"),
        (("speech", "--transcripts", "README.md", "--audio", "x"), "--audio x: no such folder"),
        (
            ("speech", "--transcripts", "a", "--audio", ".", "--transcripts", "b", "--audio", ".", "--split", "train"),
            "2 --transcripts but 1 --split: give one for each, or none at all",
        ),
        (
            ("speech", "--transcripts", "a", "--audio", ".", "--audio", "."),
            "1 --transcripts but 2 --audio: give one for each",
        ),
        (
            ("aic", "--annotations", "a", "--images", ".", "--annotations", "b", "--images", ".", "--split", "train"),
            "2 --annotations but 1 --split: give one for each, or none at all",
        ),
        (("aic", "--annotations", "a", "--annotations", "b", "--images", "."), "2 --annotations but 1 --images: give"),
        (
            ("vqa2", "--annotations", "a", "--images", ".", "--questions", "a", "--questions", "b"),
            "1 --annotations but 2 --questions: give one for each",
        ),
        (("librispeech", "--input", "docs", "--split", "val", "--split", "val"), "1 --input but 2 --split: give one"),
        (("librispeech", "--input", "docs", "--split", "tets"), "the split 'tets' is none of train, dev, test"),
        (("librispeech", "--input", "docs"), "--input docs: no SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt in it"),
        (("aishell", "--input", "."), "--input wav: no such folder"),
    ],
)
def test_errors(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        prepare(*arguments, "--output", tmp_path / "out")


CAPTIONED = {"image_id": "a.jpg", "caption": ["一只猫"]}
SENTENCES = {"filename": "a.jpg", "split": "train", "sentences": ["a cat", {"raw": "a dog", "sentid": 5}]}
NARRATIVE = {"image_id": 7, "annotator_id": "p", "caption": "a cat", "voice_recording": "deep/n.ogg"}
ASKED = {"image_id": 7, "question_id": 70, "question": "What?"}
ANNOTATED = {"image_id": 7, "question_id": 70, "answer_type": "other", "answers": [{"answer": "cat"}]}
COCO_IMAGE = {"id": 1, "file_name": "a.jpg"}
OF_COCO = [{"id": 8, "image_id": 1, "caption": "a cat"}, {"id": 9, "caption": "whose?"}, "a text"]
OF_COCO += [{"id": 0, "image_id": 3, "caption": "a dog"}, {"id": 11, "image_id": 1, "caption": 5}]
COCO_CN = "COCO_val2014_000000000007"
NOT_UTF8 = "not UTF-8 text (invalid start byte at byte 0)"

# corpus, the content of its files beside a.jpg, options, records (key → captions), rejected rows
MALFORMED = [
    (
        "aic",
        {"a.json": [3, {"image_id": "a.jpg"}, {**CAPTIONED, "caption": "一只猫"}, {**CAPTIONED, "caption": [5, "鱼"]}]},
        "--annotations a.json --images . --split train",
        {"a.jpg": ("鱼",)},
        [
            ("a.json", 1, "", "the entry is not a JSON object"),
            ("a.json", 2, "", "the caption is not a list of texts"),
            ("a.json", 3, "", "the caption is not a list of texts"),
            ("a.json", 4, "a.jpg", "the caption is not a text"),
        ],
    ),
    (
        "coco",
        {"c.json": {"images": [COCO_IMAGE, {"file_name": "b.jpg"}, 5, {"id": 3}], "annotations": OF_COCO}},
        "--annotations c.json --images .",
        {"1": ("a cat",)},
        [
            ("c.json", 2, "9", "annotation 9 belongs to image None, which is not in the list of images"),
            ("c.json", 3, "", "annotation None belongs to image None, which is not in the list of images"),
            ("c.json", 5, "11", "the caption is not a text"),
            ("c.json", 2, "", "the image has no id"),
            ("c.json", 3, "", "the image has no id"),
            ("c.json", 4, "", "the image has no file name"),
        ],
    ),
    (
        "karpathy",
        {"k.json": {"images": [3, {"filename": "a.jpg", "split": "train"}, SENTENCES, {"split": "train"}]}},
        "--input k.json --images .",
        {"a": ("a dog",)},
        [
            ("k.json", 1, "", "the entry is not a JSON object"),
            ("k.json", 2, "", "the image has no list of sentences"),
            ("k.json", 3, "a", "sentence None: the caption is not a text"),
            ("k.json", 4, "", "the image has no file name"),
        ],
    ),
    (
        "coco-cn",
        {
            "coco-cn_train.txt": "\n\udcff\nCOCO_test2014_000000000007\nplain\n",
            "coco-cn_val.txt": f" {COCO_CN} \n",
            "coco-cn_test.txt": "",
            "imageid.human-written-caption.txt": f"\u3000\n#0\t没有\n{COCO_CN}#0 一只猫\n\udcff\n.jpg\t没有",
        },
        "--annotations . --images .",
        {COCO_CN: ("一只猫",)},
        [
            ("coco-cn_train.txt", 2, "", NOT_UTF8),
            ("imageid.human-written-caption.txt", 2, "#0", "the line does not begin with the name of an image"),
            ("imageid.human-written-caption.txt", 4, "", NOT_UTF8),
            ("imageid.human-written-caption.txt", 5, ".jpg", "the line does not begin with the name of an image"),
            ("coco-cn_train.txt", 3, "COCO_test2014_000000000007", "the name is not that of an image of COCO 2014"),
            ("coco-cn_train.txt", 4, "plain", "the name is not that of an image of COCO 2014"),
        ],
    ),
    (
        "cc3m",
        {
            "c.tsv": "a cat\thttp://x/1\n\udcff\na dog\thttp://x/2\n",
            "m.tsv": "\udcff\n7\n \ta.jpg\n8\t \nhttp://x/1\ta.jpg",
        },
        "--annotations c.tsv --images . --mapping m.tsv --first-row 4",
        {"4": ("a cat",)},
        [
            ("m.tsv", 1, "", NOT_UTF8),
            *(("m.tsv", line, "", "the line is not row<TAB>path or URL<TAB>path") for line in (2, 3, 4)),
            ("c.tsv", 2, "", NOT_UTF8),
            ("c.tsv", 3, "6", "the image is not in the mapping (m.tsv)"),
        ],
    ),
    (
        "cc3m",
        {"c.tsv": "caption\turl\n\u3000\na cat\thttp://x/1\na dog\tu\tv\ncaption\turl\n"},
        "--annotations c.tsv --images . --name {row:012}.jpg --first-row 6 --split val",
        {"dev/7": ("a cat",)},
        [
            ("c.tsv", 4, "dev/8", "the line is not caption<TAB>URL (3 columns)"),
            ("c.tsv", 5, "dev/9", "000000000009.jpg: no such image file"),
        ],
    ),
    (
        "librispeech",
        {"1/2/1-2.trans.txt": "\udcff\n1-2-0000\n1-2-0001 A CAT\n"},
        "--input .",
        {"1-2-0001": ("A CAT",)},
        [("1-2.trans.txt", 1, "", NOT_UTF8), ("1-2.trans.txt", 2, "1-2-0000", "the transcript is empty")],
    ),
    (
        "aishell",
        {"transcript/aishell_transcript_v0.8.txt": "\u3000\n\udcff\na 红 色\nb\n"},
        "--input .",
        {"a": ("红色",)},
        [
            ("aishell_transcript_v0.8.txt", 2, "", NOT_UTF8),
            ("aishell_transcript_v0.8.txt", 4, "b", "wav: no such recording (b.wav)"),
            ("c.wav", 1, "c", "the recording has no line among the transcripts"),
        ],
    ),
    (
        "speech",
        {"s.tsv": "\udcff\n\t红色\nn.ogg 红色\n n.ogg\t红色\t蓝色"},
        "--transcripts s.tsv --audio .",
        {"n.ogg": ("红色\t蓝色",)},
        [
            ("s.tsv", 1, "", NOT_UTF8),
            ("s.tsv", 2, "", "the line is not a path, a tab and a text"),
            ("s.tsv", 3, "n.ogg 红色", "the line is not a path, a tab and a text"),
        ],
    ),
    (
        "localized-narratives",
        {
            "n.jsonl": [
                {**NARRATIVE, "image_id": None},
                {**NARRATIVE, "annotator_id": ""},
                {**NARRATIVE, "image_id": 7.0},
                {**NARRATIVE, "voice_recording": 3},
                {**NARRATIVE, "voice_recording": ""},
                NARRATIVE,
                [NARRATIVE],
            ]
        },
        "--annotations n.jsonl --images . --name {image_id:0>12}.jpg --recordings .",
        {"7/p": ("a cat",)},
        [
            *(
                (
                    "n.jsonl",
                    line,
                    "",
                    "the image_id or the annotator_id is missing, or neither a text nor a whole number",
                )
                for line in (1, 2, 3)
            ),
            *(("n.jsonl", line, "7/p", "the voice_recording is not a path") for line in (4, 5)),
            ("n.jsonl", 7, "", "the line is not a JSON object"),
        ],
    ),
    (
        "manifest",
        {
            "m.jsonl": [
                {"id": 0, "image": 3},
                {"id": 1, "image": ""},
                {"id": 2, "regions": ["a.npz"]},
                {"id": 3, "caption": "猫", "audio": 3},
                {"id": 4, "caption": "猫", "image": None, "regions": None},
            ]
        },
        "--input m.jsonl",
        {"4": ("猫",)},
        [
            ("m.jsonl", 1, "0", "image is not a path"),
            ("m.jsonl", 2, "1", "image is not a path"),
            ("m.jsonl", 3, "2", "regions is not a path"),
            (
                "m.jsonl",
                4,
                "3",
                "the audio is neither a path nor a list of paths, lists of paths, and nulls",
            ),
        ],
    ),
    (
        "vqa2",
        {
            "q.json": {
                "data_subtype": "val2014",
                "questions": [ASKED, {**ASKED, "question_id": 71, "image_id": True}, {**ASKED, "question_id": 72}],
            },
            "a.json": {"annotations": [ANNOTATED, ANNOTATED, {**ANNOTATED, "question_id": True}]},
        },
        "--questions q.json --annotations a.json --images val2014",
        {COCO_CN: ("What?",)},
        [
            ("q.json", 2, "71", "the question has no image_id"),
            ("a.json", 2, "70", "question 70 is not in q.json, or was annotated before"),
            ("a.json", 3, "True", "the entry has no question_id"),
            ("q.json", 0, "72", "the question has no annotation"),
        ],
    ),
]


@pytest.fixture
def download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, object]], None]:
    """Writes files into the current folder, which is empty; halves of surrogates become bytes beyond UTF-8."""
    monkeypatch.chdir(tmp_path)

    def write(files: dict[str, object]) -> None:
        for name, content in files.items():
            if isinstance(content, list) and name.endswith(".jsonl"):
                write_lines(Path(name), content)
            elif isinstance(content, str):
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                Path(name).write_bytes(content.encode("utf-8", "surrogateescape"))
            else:
                write_json(Path(name), content)

    return write


@pytest.mark.parametrize(
    ("name", "files", "options", "records", "wanted"),
    MALFORMED,
    ids=[f"{case[0]}-{case[2][:14]}" for case in MALFORMED],
)
def test_malformed_entries_are_told_by_file_line_and_id(
    name: str,
    files: dict[str, object],
    options: str,
    records: dict[str, tuple[str, ...]],
    wanted: list[tuple[str, int, str, str]],
    download: Callable[[dict[str, object]], None],
) -> None:
    """And what is well formed beside them is prepared."""
    download(files)
    for image in ("a.jpg", "000000000007.jpg", f"val2014/{COCO_CN}.jpg"):
        draw(Path(image))
    for recording in ("n.ogg", "1/2/1-2-0001.flac", "wav/train/S1/a.wav", "wav/test/S2/c.wav"):
        speak(Path(recording))
    shares = ("--dev-share", 0, "--test-share", 0)
    prepare(name, *options.split(), "--output", "out", "--workers", 1, "--max-bad", 1, *shares)
    found = [(entry["file"], entry["line"], entry["id"], entry["reason"]) for entry in rejected(Path("out"))]
    assert found == wanted
    info = read_info(Path("out"))
    splits = info["splits"]
    assert {key: record.captions for split in splits for key, record in read(Path("out"), split).items()} == records
    assert info["about"]["rejected"] == len(wanted) and info["about"]["rows"] == len(wanted) + len(records)
    if "narratives" in name:
        assert splits["train"]["audio"] == 1, "the recording is found by its name alone"


EMPTY_VQA = {"data_subtype": "val2014", "questions": []}


@pytest.mark.parametrize(
    ("command", "files", "message"),
    [
        ("aic --annotations x --images .", {"x": {}}, "x is not in AI Challenger's caption format: it is no list"),
        ("coco --annotations x --images .", {"x": []}, "x is not in COCO's caption format: it has no list of images"),
        ("coco --annotations x --images .", {"x": {"images": {}, "annotations": []}}, "it has no list of images"),
        ("coco --annotations x --images .", {"x": {"images": []}}, "it has no list of annotations"),
        ("karpathy --input x --images .", {"x": []}, "x is not in the format of Karpathy's splits: it has no list of"),
        ("karpathy --input x --images .", {"x": {"images": {}}}, "splits: it has no list of images"),
        (
            "vqa2 --questions x --annotations y --images .",
            {"x": {"questions": []}, "y": []},
            "x is not in the format of VQA v2: it has no data_subtype",
        ),
        (
            "vqa2 --questions x --annotations y --images .",
            {"x": {"data_subtype": "a"}, "y": []},
            "x is not in the format of VQA v2: it has no list of questions",
        ),
        (
            "vqa2 --questions x --annotations y --images .",
            {"x": EMPTY_VQA, "y": []},
            "y is not in the format of VQA v2: it has no list of annotations",
        ),
        ("vqa2 --questions x --annotations y --images .", {"x": EMPTY_VQA}, "--questions, --annotations y: no such"),
        ("aishell --input .", {"wav/a": ""}, "expected one transcript/aishell_transcript….txt, found 0"),
        (
            "aishell --input .",
            {"wav/a": "", "transcript/aishell_transcript_1.txt": "", "transcript/aishell_transcript_2.txt": ""},
            "expected one transcript/aishell_transcript….txt, found 2",
        ),
        ("manifest --input x", {"x": "\n\u3000\n"}, "there are no rows to write to out"),
        ("manifest --input x --max-bad 1", {"x": "[]"}, "there are no rows to write to out"),
        ("manifest --input x --max-bad -0.01", {"x": ""}, "--max-bad must be between 0 and 1"),
        ("manifest --input x --max-bad 1.01", {"x": ""}, "--max-bad must be between 0 and 1"),
        ("manifest --input x --dev-share -0.01", {"x": ""}, "--dev-share and --test-share must not be negative"),
        ("manifest --input x --test-share -0.01", {"x": ""}, "--dev-share and --test-share must not be negative"),
        ("manifest --input x --dev-share 0.5 --test-share 0.5", {"x": ""}, "and their sum must be below 1"),
        ("manifest --input x --dev-share 0.5 --test-share 0.49", {"x": ""}, "there are no rows to write"),
    ],
)
def test_what_is_no_such_corpus(
    command: str, files: dict[str, object], message: str, download: Callable[[dict[str, object]], None]
) -> None:
    download(files)
    with pytest.raises(DataError, match=re.escape(message)):
        prepare(*command.split(), "--output", "out")


def test_results_come_in_order_and_items_are_read_a_little_ahead() -> None:
    """From more processes than one: also once more chunks have been read than may be waited for."""
    items = iter(range(300))
    results = ordered_map(np.negative, items, 2)
    first = next(results)
    assert 300 - length_hint(items) == (2 * CHUNKS_AHEAD + 1) * CHUNK, "bounded memory"
    assert [first, *results] == [-item for item in range(300)]


@pytest.mark.parametrize(
    ("splits", "ids"),
    [
        (("train", "test"), ("train/a.wav", "test/a.wav")),
        (("dev", "val"), ("dev/one/a.wav", "dev/other/a.wav")),
        ((), ("one/a.wav", "other/a.wav")),
    ],
)
def test_recordings_of_two_folders_may_have_one_name(
    tmp_path: Path, splits: tuple[str, ...], ids: tuple[str, str]
) -> None:
    arguments: list[object] = []
    for number, name in enumerate(("one", "other")):
        speak(tmp_path / name / "a.wav", 16000 + number)
        lines = write_lines(tmp_path / f"{name}.tsv", [f"a.wav\t{name}"])
        arguments += ["--transcripts", lines, "--audio", tmp_path / name]
        arguments += ["--split", splits[number]] if splits else []
    prepare("speech", *arguments, "--output", tmp_path / "out", "--workers", 1, "--dev-share", 0, "--test-share", 0)
    assert captions_of(tmp_path / "out") == dict(zip(ids, (("one",), ("other",)), strict=True))


def captions_of(folder: Path) -> dict[str, tuple[str, ...]]:
    """The captions of all splits, by the ids of their records."""
    records = {}
    for split in read_info(folder)["splits"]:
        records |= read(folder, split)
    return {key: record.captions for key, record in records.items()}


@pytest.mark.parametrize(
    ("splits", "starts"),
    [
        (("train", "train", "test"), ("train/a/t.tsv/", "train/b/t.tsv/", "test/")),
        (("train", "test", "dev"), ("train/", "test/", "dev/")),
        ((), ("a/t.tsv/", "b/t.tsv/", "c/t.tsv/")),
    ],
)
def test_rows_of_several_files_have_ids_of_their_own(
    tmp_path: Path, splits: tuple[str, ...], starts: tuple[str, ...]
) -> None:
    arguments: list[object] = ["--name", "{row}.png", "--dev-share", 0, "--test-share", 0, "--workers", 1]
    wanted = {}
    for number, name in enumerate("abc"):
        for row in range(2):
            draw(tmp_path / name / f"{row}.png", (20 + number, 20))
            wanted[f"{starts[number]}{row}"] = (f"{name} {row}",)
        lines = write_lines(tmp_path / name / "t.tsv", [f"{name} {row}\thttp://x/{row}" for row in range(2)])
        arguments += ["--annotations", lines, "--images", tmp_path / name]
        arguments += ["--split", splits[number]] if splits else []
    translated = f"{starts[1]}1"
    chinese = write_lines(tmp_path / "zh.tsv", [f"{translated}\t乙"])
    prepare("cc3m", *arguments, "--output", tmp_path / "out", "--translations", chinese)
    assert captions_of(tmp_path / "out") == {**wanted, translated: ("乙",)}


def write_captions(corpus: str, folder: Path, captions: dict[str, str]) -> Path:
    """A file of a corpus: a caption of each image by its name, which is a number."""
    if corpus == "flickr30k-cn":
        return write_lines(folder / "t.txt", [f"{name}.jpg#0\t{text}" for name, text in captions.items()])
    if corpus == "aic":
        entries = [{"image_id": f"{name}.jpg", "caption": [text]} for name, text in captions.items()]
        return write_json(folder / "t.json", entries)
    images = [{"id": int(name), "file_name": f"{name}.jpg"} for name in captions]
    texts = [{"id": int(name), "image_id": int(name), "caption": text} for name, text in captions.items()]
    return write_json(folder / "t.json", {"images": images, "annotations": texts})


@pytest.mark.parametrize(
    ("corpus", "splits", "ids"),
    [
        ("aic", ("train", "test"), ("1.jpg", "train/2.jpg", "test/2.jpg", "3.jpg")),
        ("aic", ("train", "train"), ("1.jpg", "train/a/2.jpg", "train/b/2.jpg", "3.jpg")),
        ("flickr30k-cn", ("train", "test"), ("1", "train/2", "test/2", "3")),
        ("flickr30k-cn", (), ("1", "a/2", "b/2", "3")),
        ("coco", ("train", "test"), ("train/1", "train/2", "test/2", "test/3")),
        ("coco", ("train", "train"), ("train/1", "train/a/2", "train/b/2", "train/3")),
        ("coco", (), ("1", "a/2", "b/2", "3")),
    ],
)
def test_images_of_two_folders_may_have_one_name(
    tmp_path: Path, corpus: str, splits: tuple[str, ...], ids: tuple[str, ...]
) -> None:
    """Names that one folder alone has stay ids as they are."""
    arguments: list[object] = ["--dev-share", 0, "--test-share", 0, "--workers", 1]
    for number, (folder, names) in enumerate({"a": "12", "b": "23"}.items()):
        for name in names:
            draw(tmp_path / folder / f"{name}.jpg", (20 + number, 20))
        file = write_captions(corpus, tmp_path / folder, {name: folder + name for name in names})
        arguments += ["--annotations", file, "--images", tmp_path / folder]
        arguments += ["--split", splits[number]] if splits else []
    prepare(corpus, *arguments, "--output", tmp_path / "out")
    wanted = [("a1",), ("a2",), ("b2",), ("b3",)]
    assert captions_of(tmp_path / "out") == dict(zip(ids, wanted, strict=True))
