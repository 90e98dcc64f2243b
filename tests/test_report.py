import json
import math
import unicodedata

import numpy as np
import pytest
from matplotlib.ft2font import FT2Font, LoadFlags
from PIL import Image

from src.files import ROOT, write_json
from src.report import plots
from src.report.page import FONT, Page, new_figure, style, wrap
from src.report.plots import _curve, _part_numbers, loss_curves
from src.report.sheets import (
    RIGHT_MARK,
    WRONG_MARK,
    album_sheet,
    caption_sheet,
    reconstruction_sheet,
    retrieval_sheet,
)
from src.report.tables import retrieval_table, summary, table, text_table

DIRECTIONS = (
    "text_to_image",
    "image_to_text",
    "audio_to_image",
    "image_to_audio",
    "text_to_audio",
    "audio_to_text",
    "image_to_text+audio",
    "text+audio_to_image",
)
RECALL = {"R@1": 0.61234, "R@5": 0.9, "R@10": 0.99, "median_rank": 1.5}


def columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def test_table_lines_up_with_chinese():
    text = table([["红色背景上，有一只猫", 0.5, "a"], ["cat", 12.25, "b"]], ["标题", "score", "last"])
    lines = text.splitlines()
    assert lines[2].endswith("0.500  a") and lines[3].endswith("12.250  b")
    assert len({columns(line[: line.rindex("  ")]) for line in lines}) == 1


def test_table_cells():
    text = table([[None, True, 1234567, 1e-6, np.float32(0.25)]], ["a", "b", "c", "d", "e"])
    assert text.splitlines()[2].split() == ["–", "yes", "1,234,567", "1.0e-06", "0.250"]


def test_table_names_a_row_of_the_wrong_length():
    with pytest.raises(ValueError, match="table row 1 has 1 cells for 2 headers"):
        table([[1, 2], [3]], ["a", "b"])


def test_retrieval_table():
    reranked = {"text_to_image": {**RECALL, "R@1": 0.997}}
    lines = retrieval_table(dict.fromkeys(DIRECTIONS, RECALL), reranked).splitlines()
    assert len(lines) == 2 + 8
    assert lines[2].split() == ["text", "→", "image", "0.612", "0.900", "0.990", "1.5", "0.997", "0.900", "0.990"]
    assert lines[3].split()[-3:] == ["–", "–", "–"]
    assert lines[-1].startswith("text+audio → image")
    assert "re-ranked" not in retrieval_table({"text_to_image": RECALL})
    limits = {"gallery": 500, "different": 20, "best_R@1": 0.75}
    lines = retrieval_table({"text_to_image": RECALL | limits}).splitlines()
    assert lines[0].split()[3:] == ["items", "different", "best", "R@1", "R@1", "R@5", "R@10", "median"]
    assert lines[2].split()[3:7] == ["500", "20", "0.750", "0.612"]


def test_text_table_takes_flat_and_nested_metrics():
    text = text_table({"facts_right": 0.5, "words": {"bleu4": 0.25}})
    assert text.splitlines()[2:] == ["all facts right  0.500", "BLEU-4, words    0.250"]
    chance = {"facts_right": 0.125, "words": {"bleu4": 0.0}, "images": 2}
    text = text_table({"facts_right": 0.5, "words": {"bleu4": 0.25}, "images": 2, "chance": chance})
    assert [line.split() for line in text.splitlines()[2:]] == [
        ["all", "facts", "right", "0.500", "0.125"],
        ["BLEU-4,", "words", "0.250", "0.000"],
        ["images", "2", "–"],
    ]


def test_summary_shows_what_there_is():
    text = summary({"retrieval": {"audio_to_text": RECALL}, "gallery": 1000, "parameters": {"total": 2345678}})
    assert "gallery of 1,000" in text and "audio → text" in text and "2,345,678" in text and "captions" not in text
    spread = {"mean_cosine": 0.25, "effective_rank": 17.5, "dimensions": 64, "items": 9}
    lines = summary({"embeddings": {"text": spread}}).splitlines()
    assert lines[0].split() == ["embeddings", "mean", "cosine", "effective", "rank", "dimensions"]
    assert lines[-1].split() == ["text", "0.250", "17.500", "64"]


def test_summary_shows_folds_beside_the_whole_gallery():
    whole = {"audio_to_text": RECALL | {"gallery": 5000, "chance_R@1": 0.0002}}
    smaller = {"audio_to_text": RECALL | {"R@1": 0.75, "gallery": 1000.0, "chance_R@1": 0.001}}
    again = {"audio_to_text": {"R@1": 0.875, "R@5": 0.95, "R@10": 1.0, "median_rank": 1.0}}
    for reranked, cells in (({}, []), (again, ["0.875", "0.950", "1.000"])):
        folds = {"count": 5, "gallery": 1000, "retrieval": smaller, "reranked": reranked}
        parts = summary({"retrieval": whole, "reranked": {}, "gallery": 5000, "folds": folds}).split("\n\n")
        titles, (first, second) = parts[::2], (part.splitlines()[-1].split()[3:] for part in parts[1::2])
        assert titles == ["Retrieval, gallery of 5,000", "Retrieval, mean of 5 galleries of 1,000"]
        assert first == ["5000", "2.0e-04", "0.612", "0.900", "0.990", "1.5"]
        assert second == ["1000", "0.001", "0.750", "0.900", "0.990", "1.5", *cells]


def test_json_is_plain_and_rounded(tmp_path):
    path = tmp_path / "new" / "metrics.json"
    values = {"猫": np.float32(1 / 3), "n": np.int64(2), "list": (np.arange(2), True, None), "tiny": 1.23456789e-7}
    write_json(path, values)
    assert "猫" in path.read_text(encoding="utf-8")
    expected = {"猫": 0.333333, "n": 2, "list": [[0, 1], True, None], "tiny": 1.23457e-07}
    assert json.loads(path.read_text(encoding="utf-8")) == expected


def test_json_survives_a_failed_write(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_json(path, {"loss": 1.0})
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=rf"metrics.json: loss\[1\] is {value}, which JSON cannot hold"):
            write_json(path, {"loss": [1.0, value]})

    def full_disk(_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_json(path, {"loss": 2.0})
    assert json.loads(path.read_text()) == {"loss": 1.0}
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.json"]


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, (64, 64, 3)).astype(np.uint8)


def check_png(path) -> None:
    assert path.stat().st_size < 1_000_000
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert 600 <= pixels.shape[1] <= 2400
    assert (pixels[[0, -1]] == 255).all() and (pixels[:, [0, -1]] == 255).all()  # nothing is cut off at the edges
    assert (pixels < 100).any()


def test_wrap_keeps_words_and_marks_and_leaves_no_orphan():
    wide = 10 * 9 / 72  # ten characters of nine points
    assert wrap("上面是两团火焰，下面是两朵花", wide, 9, 3) == ["上面是两团火焰，", "下面是两朵花"]
    assert wrap("一二三四五六七八九十，一二", wide, 9, 3) == ["一二三四五六七八九十，", "一二"]
    assert wrap("一二三四五六七八九十一二", wide, 9, 3) == ["一二三四五六", "七八九十一二"]
    assert wrap("一二三四五六七八九十，", wide, 9, 3) == ["一二三四五六七八九十，"]
    assert wrap("a green frog\non a wall", wide, 9, 3) == ["a green frog", "on a wall"]
    assert wrap("一二三四五六七八九十" * 3, wide, 9, 2) == ["一二三四五六七八九十", "一二三四五六七八九…"]
    assert wrap("w" * 40, wide, 9, 9) == ["w" * 12, "w" * 12, "w" * 16]
    assert wrap("holiday_2024-lake/boat.png", wide, 9, 3) == ["holiday_2024-", "lake/boat.png"]
    assert wrap("", wide, 9, 2) == []


def test_loss_curves_of_several_runs(tmp_path):
    for name, keys in {"pretrain": ["loss", "loss/contrastive", "loss/mlm"], "caption": ["loss"]}.items():
        (tmp_path / name).mkdir()
        lines = [json.dumps({"step": step, **dict.fromkeys(keys, 5 / step)}) for step in range(1, 300, 10)]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 300, "lo']))  # a run was killed
    loss_curves([tmp_path / "pretrain/metrics.jsonl", tmp_path / "caption/metrics.jsonl"], tmp_path / "loss.png")
    check_png(tmp_path / "loss.png")


def test_every_curve_is_told_apart_and_every_axis_named(tmp_path, monkeypatch):
    """By colour and, for who sees none, by dashes; runs whose losses end far apart share a panel on a log axis."""
    shown = []
    monkeypatch.setattr(plots, "save", lambda figure, _: shown.append(figure))
    for name, last in {"pretrain": 3.0, "caption": 0.05, "other": 0.04}.items():
        (tmp_path / name).mkdir()
        lines = [
            {"step": step, "loss": last + 1 / step, "loss/mlm": 2.0 + last, "loss/x": 1.0} for step in (1, 10, 1000)
        ]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    loss_curves(sorted(tmp_path.glob("*/metrics.jsonl")), tmp_path / "loss.png")
    (figure,) = shown
    total, mlm, _ = figure.axes
    assert total.get_yscale() == "log" and mlm.get_yscale() == "linear" and "log scale" in total.get_title("left")
    figure.canvas.draw()
    assert not any("$" in tick.get_text() for tick in total.get_yticklabels()), "numbers as they are"
    assert total.get_ylabel() == "loss" and {axis.get_xlabel() for axis in figure.axes} == {"step"}
    looks = [(line.get_color(), line.get_linestyle(), str(line._unscaled_dash_pattern)) for line in total.lines[1::2]]
    assert len({look[0] for look in looks}) == len({look[1:] for look in looks}) == 3


def test_a_large_confusion_matrix_has_a_bar_and_a_small_one_numbers(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "save", lambda figure, _: shown.append(figure))
    for count in (3, 40):
        plots.confusion_matrix(
            tmp_path / "classes.png", "title", list(map(str, range(count))), np.eye(count, dtype=int)
        )
    small, large = shown
    assert len(small.axes) == 1 and len(small.axes[0].texts) == 9
    assert len(large.axes) == 2 and large.axes[1].get_ylabel() == "share of the truth's items"
    assert {axis.get_ylabel() for axis in (small.axes[0], large.axes[0])} == {"truth (items)"}


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_numbers_at_the_ends_of_curves_do_not_meet(scale: str) -> None:
    """Of runs that end alike; far from others a number stands at its curve's end."""
    axis = new_figure(4, 3).add_subplot()
    for last in (4.86, 1.2, 4.9, 4.86):
        _curve(axis, np.arange(3), np.full(3, last), "red", "-")
    axis.set_yscale(scale)
    axis.set_ylim(1, 10)
    _part_numbers(axis)
    places = {}
    for number in axis.texts:
        end = axis.transData.transform(number.xy)[1] * 72 / axis.figure.dpi
        places.setdefault(number.get_text(), []).append((end + number.get_position()[1], number.get_position()[1]))
    heights = sorted(place for group in places.values() for place, _ in group)
    assert min(np.diff(heights)) >= 11.9 and places["1.2"][0][1] == 0
    assert min(moved for _, moved in places["4.86"]) == 0 and places["4.9"][0][0] == heights[-1]


def test_loss_curves_name_a_file_without_losses(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "lr": 0.1}\n')
    with pytest.raises(ValueError, match="metrics.jsonl: no line holds a step and a loss"):
        loss_curves(path, tmp_path / "loss.png")
    with pytest.raises(ValueError, match="none.jsonl: no such metrics file"):
        loss_curves(tmp_path / "none.jsonl", tmp_path / "loss.png")


@pytest.mark.filterwarnings("error")  # a missing Chinese glyph is a warning
def test_sheets(tmp_path, image):
    caption = "红色背景上，左边有一只大猫，右边有两个苹果"
    clip = np.random.default_rng(2).integers(0, 255, (170, 64)).astype(np.uint8)
    texts = [(caption, None, -3.25, False)] * 5
    images = [(caption, image, 0.75, True)] * 6
    rows = [(caption, images), ((clip, caption), images[:3]), (clip, texts), (image, texts)]
    retrieval_sheet(tmp_path / "retrieval.png", "Retrieval · 检索", rows)
    check_png(tmp_path / "retrieval.png")
    caption_sheet(tmp_path / "captions.png", "Captions", [(image, caption, caption[:9], at > 1) for at in range(7)])
    check_png(tmp_path / "captions.png")


def drawn(text: str) -> np.ndarray:
    """Darkness of a page with one text on it, without its blank margin."""
    with style():
        page = Page(2, 0.5)
        page.text(0.1, 0.1, text, 12)
        page.figure.canvas.draw()
    ink = 255 - np.asarray(page.figure.canvas.buffer_rgba())[..., 0]
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else ink[:0, :0]


def test_the_font_has_every_chinese_character():
    """Of Unihan's basic block and of BERT's vocabulary, traditional forms too, each with an outline of its own."""
    font = FT2Font(str(FONT))
    glyphs = font.get_charmap()
    block = range(0x4E00, 0x9FA6)
    assert len({glyphs[code] for code in block}) == 20901, "墫 and 壿 are two characters of one form"
    vocabulary = set((ROOT / "config/vocab/bert-base-chinese.txt").read_text(encoding="utf-8"))
    assert sum(unicodedata.name(char, "").startswith("CJK UNIFIED") for char in vocabulary) == 7322
    written = ("CJK", "HIRAGANA", "KATAKANA", "FULLWIDTH", "BOPOMOFO", "DIGIT", "IDEOGRAPHIC")
    lacking = {char for char in vocabulary if unicodedata.name(char, "").startswith(written)} - set(map(chr, glyphs))
    assert not lacking
    assert not set(map(chr, range(32, 127))) - set(map(chr, glyphs))
    for code in block:
        font.load_glyph(glyphs[code], flags=LoadFlags.NO_SCALE)
        assert len(font.get_path()[0]) > 3, f"{chr(code)} has no outline"


@pytest.mark.filterwarnings("error")
def test_what_the_font_lacks_is_a_box():
    """No warning, whatever the script: an emoji, Arabic, Devanagari, Thai, a rare Han, a control character."""
    box = drawn("😂")
    assert box.any(axis=1).all() and box.any(axis=0).all(), "a frame closed all around"
    assert (box[len(box) // 2] > 0).mean() < 0.9, "and not a black square"
    for other in ("ب", "ऄ", "ก", "\U0002a6d6", "\ufffe", "\u2028", "❤"):
        assert (drawn(other) == box).all(), repr(other)
    for mark in (RIGHT_MARK, WRONG_MARK):
        assert drawn(mark).shape != box.shape, "what stands for a colour is no box"
    assert drawn("龘").shape != box.shape or (drawn("龘") != box).any()
    assert drawn("臺灣 \udcff").any(), "half a surrogate, of a file name that is not UTF-8"


def test_empty_sheets_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no queries to draw"):
        retrieval_sheet(tmp_path / "a.png", "title", [])
    with pytest.raises(ValueError, match="no captions to draw"):
        caption_sheet(tmp_path / "a.png", "title", [])
    with pytest.raises(ValueError, match="album sheet: no images to draw"):
        album_sheet(tmp_path / "a.png", "title", [])
    with pytest.raises(ValueError, match="reconstruction sheet: no images to draw"):
        reconstruction_sheet(tmp_path / "a.png", "title", [])
    assert not list(tmp_path.iterdir())
