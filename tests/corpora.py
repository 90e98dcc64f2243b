"""A few rows of every corpus, in the layout in which it is downloaded, some of them bad; and what prepares them."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from src.data.record import Record
from src.data.store import Dataset
from tools import prepare_data as command

Records = dict[str, dict[str, tuple[str, ...]]]  # split → key → captions


@dataclass
class Layout:
    """What a corpus' files are, and what must become of them."""

    arguments: list[object]  # of the command
    records: Records
    rejected: list[str]  # parts of the reasons, in order
    spoken: int = 0  # samples with audio


class Dying:
    """Reads media in a worker that does not survive it."""

    def read_all(self, rows: list) -> list:
        os._exit(9)


def draw(path: Path, size: tuple[int, int] = (24, 20)) -> Path:
    """An image that no other name has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(path.name.encode()))
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path)
    return path


def speak(path: Path, rate: int = 16000, channels: int = 1, seconds: float = 0.5, **kind: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.random.default_rng(rate).uniform(-0.3, 0.3, (int(rate * seconds), channels))
    soundfile.write(path, wave, rate, **kind)
    return path


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def write_lines(path: Path, lines: list[object]) -> Path:
    """Texts as they are, anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def coco(folder: Path) -> Layout:
    names = [f"{number:012}.jpg" for number in (9, 25, 30, 34)]
    for name in names[:3]:
        draw(folder / "train2017" / name)
    draw(folder / "val2017" / "000000000139.jpg")
    entry = {"license": 5, "coco_url": "http://x/y.jpg", "height": 20, "width": 24, "date_captured": "2013-11-14"}
    images = [{**entry, "file_name": name, "id": int(name[:12])} for name in names]
    texts = [(9, "a cat"), (9, "two cats\n"), (25, "a dog"), (30, "a fish"), (34, "lost"), (77, "nobody's"), (9, " ")]
    captions = [{"image_id": owner, "id": 100 + place, "caption": text} for place, (owner, text) in enumerate(texts)]
    about = {"info": {"year": 2017}, "licenses": [{"id": 5}]}
    train = {**about, "images": images, "annotations": captions}
    val = {
        **about,
        "images": [{**entry, "file_name": "000000000139.jpg", "id": 139}],
        "annotations": [{"image_id": 139, "id": 7, "caption": "a bird"}],
    }
    told = ["100\t一只猫", "102\t一只狗", "no tab", "7\t一只鸟", "100\t又一只猫", "999\t别的"]
    chinese = write_lines(folder / "zh.tsv", told)
    arguments = [
        *("--annotations", write_json(folder / "captions_train2017.json", train), "--images", folder / "train2017"),
        *("--split", "train", "--annotations", write_json(folder / "captions_val2017.json", val)),
        *("--images", folder / "val2017", "--split", "dev", "--translations", chinese),
    ]
    found = {"train/9": ("一只猫", "two cats"), "train/25": ("一只狗",), "train/30": ("a fish",)}
    reasons = [
        "no tab",
        "translation of this id before",
        "belongs to image 77",
        "a caption is empty",
        "no such image",
    ]
    return Layout(arguments, {"train": found, "dev": {"dev/139": ("一只鸟",)}}, reasons)


def karpathy(folder: Path) -> Layout:
    images, sentence = [], 0
    for number, (part, split) in enumerate(
        [("val2014", "test"), ("train2014", "train"), ("val2014", "restval"), ("val2014", "val"), ("val2014", "left")]
    ):
        name = f"COCO_{part}_{number:012}.jpg"
        draw(folder / part / name)
        texts = ["A man.", "A red bike."] if number else ["A man.", ""]
        sentences = [
            {"tokens": text.split(), "raw": text, "imgid": number, "sentid": sentence + i}
            for i, text in enumerate(texts)
        ]
        sentence += 2
        images.append(
            {
                **{"filepath": part, "sentids": [s["sentid"] for s in sentences], "filename": name, "imgid": number},
                **{"split": split, "sentences": sentences, "cocoid": number},
            }
        )
    told = {0: "一个人", "3": "一辆车", "99": "别的"}
    chinese = write_lines(folder / "zh.jsonl", [{"id": key, "caption": text} for key, text in told.items()])
    file = write_json(folder / "dataset_coco.json", {"images": images, "dataset": "coco"})
    records = {
        "train": {
            "COCO_train2014_000000000001": ("A man.", "一辆车"),
            "COCO_val2014_000000000002": ("A man.", "A red bike."),
        },
        "dev": {"COCO_val2014_000000000003": ("A man.", "A red bike.")},
        "test": {"COCO_val2014_000000000000": ("一个人",)},
    }
    reasons = ["sentence 1: a caption is empty", "the split is none of train, restval, val, test"]
    return Layout(["--input", file, "--images", folder, "--translations", chinese], records, reasons)


def coco_cn(folder: Path) -> Layout:
    names = [f"COCO_{part}2014_{number:012}" for number, part in enumerate(("train", "train", "val", "val"))]
    for name in names:
        draw(folder / name.split("_")[1] / f"{name}.jpg")
    lists = folder / "coco-cn-version1805v1.1"
    write_lines(lists / "coco-cn_train.txt", [names[0], names[1], "COCO_train2014_000000000099"])
    write_lines(lists / "coco-cn_val.txt", [names[2], names[0]])
    write_lines(lists / "coco-cn_test.txt", [names[3]])
    texts = [f"{name}#0\t一只{animal}" for name, animal in zip(names, "猫狗鱼鸟", strict=True)]
    texts += [f"{names[0]}#1\t红色的猫", f"{names[1]}#1", "COCO_val2014_000000000055#0\t别的", f"{names[1]}#2\t两只狗"]
    write_lines(lists / "imageid.human-written-caption.txt", texts)
    write_lines(lists / "imageid.manually-translated-caption.txt", [f"{names[3]}#0\t一只小鸟"])
    records = {
        "train": {names[0]: ("一只猫", "红色的猫"), names[1]: ("一只狗", "两只狗")},
        "dev": {names[2]: ("一只鱼",)},
        "test": {names[3]: ("一只鸟", "一只小鸟")},
    }
    reasons = ["listed before", "a caption is empty", "in no list of images", "the image has no caption"]
    return Layout(["--annotations", lists, "--images", folder, "--with-translated"], records, reasons)


def flickr30k_cn(folder: Path) -> Layout:
    for number in (1000092795, 10002456, 36979):
        draw(folder / "flickr30k-images" / f"{number}.jpg")
    train = [
        "1000092795.jpg#0\t两只 猫",
        "1000092795.jpg#1\t一只 猫 和 狗",
        "10002456\t一只 鱼",
        "10002456#1\t两只 鱼",
        "10002456",
        "7\t没有",
    ]
    test = ["36979#zhm#0 两个:CD 人:NN", "36979#zhm#1 一只:CD 鸟:NN"]
    arguments: list[object] = ["--segmented"]
    for split, lines in (("train", train), ("test", test)):
        file = write_lines(folder / f"flickr30k_cn_{split}.txt", list(lines))
        arguments += ["--annotations", file, "--images", folder / "flickr30k-images", "--split", split]
    found = {"1000092795": ("两只猫", "一只猫和狗"), "10002456": ("一只鱼", "两只鱼")}
    records = {"train": found, "test": {"36979": ("两个人", "一只鸟")}}
    return Layout(arguments, records, ["a caption is empty", "no such image"])


def aic(folder: Path) -> Layout:
    images = folder / "caption_train_images_20170902"
    names = ["8f00f3d0f1008e085ab660e70dffced16a8259f6.jpg", "b96ff46ba5b1cbe5bb4cc32b566431132ca71a64.jpg", "gone.jpg"]
    for name in names[:2]:
        draw(images / name)
    captions = ["一只猫", "红色的猫", "两只猫", "猫和狗", "小猫"]
    entries = [{"url": "http://x/1.jpg", "image_id": name, "caption": captions} for name in names]
    entries[1] = {**entries[1], "caption": ["一只鱼", "", "两只鱼"]}
    file = write_json(folder / "caption_train_annotations_20170902.json", [*entries, {"url": "u", "caption": captions}])
    records = {"train": {names[0]: tuple(captions), names[1]: ("一只鱼", "两只鱼")}}
    reasons = ["a caption is empty", "no such image", "no file name"]
    return Layout(["--annotations", file, "--images", images, "--split", "train"], records, reasons)


def cc3m(folder: Path) -> Layout:
    lines = [
        f"a very typical {word}\thttp://lh6.ggpht.com/-{word}/pic.jpg" for word in ("bus", "cat", "dog", "fish", "map")
    ]
    train = write_lines(
        folder / "Train_GCC-training.tsv", [*lines, "only a caption", "\thttp://x/y.jpg", "http://x/z.jpg\tz"]
    )
    for row in (0, 1, 2, 3, 5, 6):
        draw(folder / "training" / f"{row:09}.jpg")
    val = write_lines(
        folder / "Validation_GCC-1.1.0-Validation.tsv", ["caption\turl", "a hen\thttp://x/hen", "a cow\thttp://x/cow"]
    )
    draw(folder / "validation" / "hen.png")
    mapping = write_lines(folder / "val.tsv", ["http://x/hen\then.png", "http://x/hen\tother.png", "a.png\t7"])
    mapped = write_lines(folder / "train.tsv", [f"{row}\t{row:09}.jpg" for row in range(7)])
    chinese = write_lines(folder / "zh.tsv", ["train/1\t一只猫", "val/0\t一只鸡", "0\t别的"])
    arguments = [
        *("--annotations", train, "--images", folder / "training", "--split", "train", "--mapping", mapped),
        *("--annotations", val, "--images", folder / "validation", "--split", "val", "--mapping", mapping),
        *("--translations", chinese),
    ]
    found = {f"train/{row}": (f"a very typical {word}",) for row, word in enumerate(("bus", "cat", "dog", "fish"))}
    records = {"train": {**found, "train/1": ("一只猫",)}, "dev": {"dev/0": ("一只鸡",)}}
    swapped = "the columns are the other way round: the line is"
    reasons = ["mapped before", f"{swapped} not row<TAB>path", "no such image", "not caption<TAB>URL"]
    reasons += ["a caption is empty", f"{swapped} URL<TAB>caption", "not in the mapping"]
    return Layout(arguments, records, reasons)


def localized_narratives(folder: Path) -> Layout:
    lines: list[object] = []
    for number, image in enumerate(("000b2f2fa3d2ad2c", "000b2f2fa3d2ad2c", "00a0c0ffee000000", "00badbadbad00000")):
        recording = f"open_images_train_v6/open_images_train_v6_{image}_{number}.ogg"
        if number < 3:
            draw(folder / "train" / f"{image}.jpg")
            speak(folder / "voice-recordings" / recording, 48000, subtype="VORBIS")
        timed = [{"start_time": 0.0, "end_time": 1.1, "utterance": "In this"}]
        lines.append(
            {
                **{
                    "dataset_id": "mscoco_train2017",
                    "image_id": image,
                    "annotator_id": number,
                    "caption": "In this image.",
                },
                **{"timed_caption": timed, "traces": [[{"x": 0.1, "y": 0.2, "t": 0.0}]], "voice_recording": recording},
            }
        )
    lines += ['{"dataset_id": "open', {**lines[0], "annotator_id": 9, "voice_recording": "gone.ogg"}]
    lines += [{**lines[2], "annotator_id": 8, "voice_recording": lines[1]["voice_recording"]}]
    told = {"000b2f2fa3d2ad2c/1": "图片里有猫", "000b2f2fa3d2ad2c": "别的"}
    chinese = write_lines(folder / "zh.jsonl", [{"id": key, "caption": text} for key, text in told.items()])
    file = write_lines(folder / "open_images_train_v6_localized_narratives-00000-of-00010.jsonl", lines)
    arguments = ["--annotations", file, "--images", folder / "train", "--split", "train"]
    arguments += ["--recordings", folder / "voice-recordings", "--translations", chinese]
    english = ("In this image.",)
    found = {"000b2f2fa3d2ad2c/0": english, "000b2f2fa3d2ad2c/1": ("图片里有猫",)}
    found |= {"00a0c0ffee000000/2": english, "00a0c0ffee000000/8": english}
    return Layout(arguments, {"train": found}, ["no such image", "malformed JSON", "no such audio"], spoken=4)


def manifest(folder: Path) -> Layout:
    for name in ("a.png", "b.webp", "c.jpg"):
        draw(folder / name)
    speak(folder / "a.wav", 8000, 2)
    lines = [
        {"id": "1", "image": "a.png", "captions": ["一只猫", "两只猫"], "audio": ["a.wav", None], "split": "train"},
        {"id": 2, "image": "b.webp", "caption": "一只狗", "split": "train"},
        {"id": "3", "caption": "只有字", "split": "train"},
        {"id": "4", "audio": "a.wav", "split": "train"},
        {"id": "5", "image": "c.jpg", "split": "test"},
        {"id": "1", "image": "c.jpg", "split": "test"},
    ]
    records = {"train": {"1": ("一只猫", "两只猫"), "2": ("一只狗",), "3": ("只有字",), "4": ()}, "test": {"5": ()}}
    return Layout(["--input", write_lines(folder / "m.jsonl", lines)], records, ["has been used before"], spoken=2)


def speech(folder: Path) -> Layout:
    speak(folder / "heard" / "a" / "1.wav", 8000, 2)
    speak(folder / "heard" / "2.mp3", 22050)
    speak(folder / "heard" / "三.flac", 44100)
    speak(folder / "heard" / "4.wav", 16000)
    speak(folder / "heard" / "5.ogg", 24000)
    lines = [
        "a/1.wav\t一只猫 在左边",
        " 2.mp3 \t 两只猫 ",
        "a/1.wav\t又一只猫",
        "2.mp3",
        "2.mp3\t",
        "gone.wav\t没有",
        "4.wav\t红",
        "5.ogg\t蓝",
    ]
    arguments: list[object] = []
    for split, told in (("train", lines), ("test", ["三.flac\t一条鱼"])):
        file = write_lines(folder / f"{split}.tsv", list(told))
        arguments += ["--transcripts", file, "--audio", folder / "heard", "--split", split]
    train = {"a/1.wav": ("一只猫 在左边",), "2.mp3": ("两只猫",), "4.wav": ("红",), "5.ogg": ("蓝",)}
    records = {"train": train, "test": {"三.flac": ("一条鱼",)}}
    reasons = ["has been used before", "not a path, a tab and a text", "the transcript is empty", "no such audio file"]
    return Layout(arguments, records, reasons, spoken=4)


def librispeech(folder: Path) -> Layout:
    arguments: list[object] = []
    read_aloud = ["CHAPTER ONE MISSUS RACHEL", "THAT HAD ITS SOURCE", "AWAY BACK", "IN THE WOODS"]
    texts = {"103-1240": read_aloud, "84-121123": ["GO DO YOU HEAR", ""]}
    parts = ("train-clean-100", "train"), ("dev-clean", "dev")
    for (chapter, lines), (part, split) in zip(texts.items(), parts, strict=True):
        place = folder / "LibriSpeech" / part / chapter.replace("-", "/")
        names = [f"{chapter}-{number:04}" for number in range(len(lines))]
        for number, name in enumerate(names):
            speak(place / f"{name}.flac", 16000 + number)
        told = [f"{name} {text}" for name, text in zip(names, lines, strict=True)]
        write_lines(place / f"{chapter}.trans.txt", told + [f"{chapter}-0009 NOT THERE"] * (split == "train"))
        arguments += ["--input", folder / "LibriSpeech" / part, "--split", split]
    train = {f"103-1240-{number:04}": (text,) for number, text in enumerate(read_aloud)}
    records = {"train": train, "dev": {"84-121123-0000": ("GO DO YOU HEAR",)}}
    return Layout(arguments, records, ["no such audio file", "the transcript is empty"], spoken=4)


def aishell(folder: Path) -> Layout:
    root = folder / "data_aishell"
    places = {"train/S0002/BAC009S0002W0122": 16000, "train/S0002/BAC009S0002W0123": 16001}
    places |= {f"train/S0003/BAC009S0003W012{number}": 16010 + number for number in (1, 2)}
    places |= {"dev/S0724/BAC009S0724W0121": 16002, "test/S0764/BAC009S0764W0121": 16003}
    places |= {"train/S0002/BAC009S0002W0999": 16004, "other/S0001/BAC009S0001W0001": 16005}
    for name, rate in places.items():
        speak(root / "wav" / f"{name}.wav", rate)
    lines = ["BAC009S0002W0122 而 对 楼市 成交", "BAC009S0002W0123  也 成为 地方", "BAC009S0724W0121 广州市 房地产"]
    lines += [
        "BAC009S0003W0121 红色",
        "BAC009S0003W0122 蓝色 背景",
        "BAC009S0764W0121 甚至 出现",
        "BAC009S0002W0777 没有 录音",
        "BAC009S0001W0001 别的 地方",
    ]
    write_lines(root / "transcript" / "aishell_transcript_v0.8.txt", list(lines))
    records = {
        "train": {
            "BAC009S0002W0122": ("而对楼市成交",),
            "BAC009S0002W0123": ("也成为地方",),
            "BAC009S0003W0121": ("红色",),
            "BAC009S0003W0122": ("蓝色背景",),
        },
        "dev": {"BAC009S0724W0121": ("广州市房地产",)},
        "test": {"BAC009S0764W0121": ("甚至出现",)},
    }
    reasons = ["no such recording (BAC009S0002W0777.wav)", "the split 'other' is none of", "no line among"]
    return Layout(["--input", root], records, reasons, spoken=4)


def questions(folder: Path) -> Layout:
    for name in ("a.png", "b.png", "d.png"):
        draw(folder / name)
    speak(folder / "a.wav", 8000, 2)
    first = {"id": 7, "image": "a.png", "question": "几只猫？", "answers": ["两只", "2"], "type": "count"}
    lines: list[object] = [
        {**first, "split": "train"},
        {"image": "a.png", "question": " 什么颜色？", "answers": "红色", "audio": "a.wav", "split": "train"},
        {"image": "a.png", "question": "", "answers": "红色", "split": "train"},
        {"image": "b.png", "question": "有狗吗？", "answers": [], "split": "train"},
        {"image": "b.png", "question": "有狗吗？", "answers": ["有", " "], "split": "train"},
        {"image": "b.png", "question": "有狗吗？", "answers": "没有", "type": 3, "split": "train"},
        {"image": "b.png", "question": "有狗吗？", "answer": "没有", "split": "train"},
        '{"image": "b.png",',
        {"image": "b.png", "question": "有鸟吗？", "answers": "有", "split": "val"},
        {"image": "b.png", "question": "有狗吗？", "answers": "没有", "audio": 3, "split": "val"},
        {"image": "c.png", "question": "有狗吗？", "answers": "没有", "split": "val"},
        *({"image": "d.png", "question": f"有{name}吗？", "answers": "有", "split": "train"} for name in "猫狗"),
    ]
    train = {"7": ("几只猫？", "什么颜色？"), "d.png:12": ("有猫吗？", "有狗吗？")}
    records = {"train": train, "dev": {"b.png:9": ("有鸟吗？",)}}
    reasons = [
        "the question is empty or not a text",
        "the answers are neither a text nor a list of texts",
        "an answer is empty",
        "the type of the question is not a text",
        "unknown key 'answer': the keys are id, image, question",
        "malformed JSON",
        "the audio is not a path",
        "no such image",
    ]
    return Layout(["--input", write_lines(folder / "q.jsonl", lines)], records, reasons, spoken=1)


def vqa2(folder: Path) -> Layout:
    for number in (9, 25):
        draw(folder / "train2014" / f"COCO_train2014_{number:012}.jpg")
    asked = [(9, 9000, "How many cats?"), (25, 25001, "Is it red?"), (9, 9001, "What is it?"), (30, 30000, "Where?")]
    asked += [
        (9, 9002, " "),
        (9, 9003, "Is it day?"),
        (9, 9004, "What?"),
        (9, 9000, "How many dogs?"),
        (25, 25000, "Why?"),
    ]
    entries: list[object] = [{"image_id": image, "question_id": key, "question": text} for image, key, text in asked]
    header = {"info": {"year": 2014}, "license": {}, "data_type": "mscoco", "data_subtype": "train2014"}
    files = [write_json(folder / "questions.json", {**header, "task_type": "Open-Ended", "questions": [*entries, 3]})]

    def annotate(image: int, key: int, kind: str, *people: object) -> dict[str, object]:
        given = [{"answer": said, "answer_confidence": "yes", "answer_id": i} for i, said in enumerate(people, 1)]
        begins = {"question_type": "how many", "multiple_choice_answer": "2", "answer_type": kind}
        return {**begins, "image_id": image, "question_id": key, "answers": given}

    answers = [
        annotate(9, 9000, "number", *["2"] * 7, "3", "two", "2"),
        annotate(9, 9001, "other", *["cat"] * 10),
        annotate(25, 25001, "yes/no", *["yes"] * 10),
        annotate(25, 25000, "other", *["it is"] * 10),
        annotate(30, 30000, "other", *["there"] * 10),
        annotate(9, 9003, "yes/no", *["yes"] * 9, None),
        annotate(9, 77, "other", "lost"),
        {"question_id": 9004, "answers": "yes"},
    ]
    files.append(write_json(folder / "annotations.json", {**header, "annotations": answers}))
    arguments = ["--questions", files[0], "--annotations", files[1], "--images", folder / "train2014"]
    records = {"COCO_train2014_000000000009": ("How many cats?", "What is it?")}
    records["COCO_train2014_000000000025"] = ("Is it red?", "Why?")
    reasons = [
        "the question is empty or not a text",
        "question 9000 is listed before",
        "the entry has no question_id",
        "the answers are neither a text nor a list of texts",
        "question 77 is not in questions.json, or was annotated before",
        "the answers are not a list of objects",
        "no such image",
    ]
    return Layout([*arguments, "--split", "train"], {"train": records}, reasons)


LAYOUTS: dict[str, Callable[[Path], Layout]] = {
    "coco": coco,
    "karpathy": karpathy,
    "coco-cn": coco_cn,
    "flickr30k-cn": flickr30k_cn,
    "aic": aic,
    "cc3m": cc3m,
    "localized-narratives": localized_narratives,
    "manifest": manifest,
    "speech": speech,
    "librispeech": librispeech,
    "aishell": aishell,
    "questions": questions,
    "vqa2": vqa2,
}


def prepare(*arguments: object) -> None:
    """The command, in this process."""
    before, sys.argv = sys.argv, ["prepare", *map(str, arguments)]
    try:
        command.main()
    finally:
        sys.argv = before


def rejected(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read(folder: Path, split: str) -> dict[str, Record]:
    dataset = Dataset(folder, split)
    return {record.key: record for record in dataset.read(range(dataset.records))}
