"""Reports of runs: what the page says is what the run folders hold, whatever they hold."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from src.config import Config, load_config, to_yaml
from src.data.store import read_info
from src.files import ROOT
from src.report.comparison import differing
from src.report.curves import POINTS, stretch_means, thinned
from src.report.document import page, write_report
from src.report.examples import RATE, SIDE, Card, ExampleBook
from src.report.html import Markup, tag
from src.report.measures import RECALLS, Measure, _image_generation, headlines, measures
from src.report.runs import ReportError, names, read_runs
from src.report.warned import findings
from src.report.words import number, seconds_of_steps, sentences
from tests.conftest import edit_info

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
RECALL = {"R@5": 0.75, "R@10": 0.875, "median_rank": 1.5, "gallery": 200, "different": 200, "best_R@1": 1.0}
METRICS = {
    "task": "pretrain",
    "split": "test",
    "weights": "model.safetensors",
    "gallery": 200,
    "retrieval": {
        "text_to_image": {"R@1": 0.5, **RECALL, "chance_R@1": 0.005},
        "image_to_text": {"R@1": 0.25, **RECALL, "chance_R@1": 0.005},
    },
    "reranked": {},
    "masked": {
        "mlm_accuracy": 0.625,
        "mlm_chance": 0.0625,
        "matching_accuracy": 0.3125,
        "matching_chance": 0.375,
        "confusion": [[7, 1, 0, 0, 0], [0, 9, 0, 0, 1], [2, 2, 3, 0, 0], [0, 0, 0, 5, 5], [1, 0, 0, 0, 19]],
    },
    "caption": {"bleu4": 0.5, "characters": {"bleu4": 0.75}, "images": 40, "chance": {"bleu4": 0.03125}},
    "transcription": {"character_error_rate": 0.125, "clips": 40, "chance": {"character_error_rate": 0.9}},
    "parameters": {"text_encoder": 1_000_000, "total": 3_210_000},
    "versions": {"python": "3.11.7", "mindspore": "2.10.0", "numpy": "1.26.4"},
}


class Page(HTMLParser):
    """Elements of a page with their attributes, and the text inside each table row."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, name: str, attributes: Any) -> None:
        self.elements.append((name, dict(attributes)))
        self.open.append(name)
        if name == "tr":
            self.rows.append([])
        if name in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, name: str) -> None:
        self.open = self.open[: len(self.open) - self.open[::-1].index(name) - 1]

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def row(self, name: str) -> list[str]:
        """The cells behind the first row of that name."""
        return next(row[1:] for row in self.rows if row and row[0] == name)


def make_run(folder: Path, *settings: str, steps: int = 3, metrics: dict[str, Any] | None = METRICS) -> Path:
    """A run folder as training and evaluation leave it."""
    folder.mkdir(parents=True)
    config = load_config(None, [f"train.output={folder}", "data.path=data", f"train.steps={steps}", *settings])
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    lines = [
        {"step": step, "loss": 4 / step, "loss/mlm": 3 / step, "loss/matching": 1 / step, "lr": 0.001 * step}
        | {"grad_norm": 2.0, "samples_per_second": 64.0}
        for step in range(1, steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if metrics is not None:
        (folder / "eval-test").mkdir()
        (folder / "eval-test" / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return folder


def curves(html: str) -> dict[str, Any]:
    """The values that the page's script draws, by metric."""
    data = json.loads(re.search(r'id="curve-data">(.*?)</script>', html, re.S)[1])
    return {panel["key"]: panel for panel in data["panels"]}


def report(*folders: Path) -> tuple[str, Page]:
    html = page(read_runs(folders))
    return html, Page(html)


def test_the_page_holds_what_was_logged(tmp_path: Path):
    html, _ = report(make_run(tmp_path / "mine"))
    assert curves(html)["loss/mlm"]["series"] == [{"run": 0, "x": [1, 2, 3], "y": [3.0, 1.5, 1.0]}]
    assert curves(html)["lr"]["series"] == [{"run": 0, "x": [1, 2, 3], "y": [0.001, 0.002, 0.003]}]
    assert [key for key, panel in curves(html).items() if panel["loss"]] == ["loss", "loss/mlm", "loss/matching"]


def test_the_page_holds_the_metrics_beside_chance(tmp_path: Path):
    _, found = report(make_run(tmp_path / "mine"))
    assert found.row("text → image") == ["0.500", "0.005", "0.750", "0.875", "1.5"]
    assert found.row("masked words right") == ["0.625", "0.062"]
    assert found.row("matching, five cases") == ["0.312 ◦", "0.375"]  # marked: no better than chance
    assert found.row("characters: BLEU-4") == ["0.750", "–"]
    assert found.row("character error rate") == ["0.125", "0.900"]  # less is better: no mark


def test_the_summary_says_what_was_trained_and_how_well(tmp_path: Path):
    text = report(make_run(tmp_path / "mine", "data.batch_size=32", "train.init_from=other/run"))[1].text
    assert "Task pretrain: a network of 3.21 million parameters, trained on 2 losses (matching, mlm)" in text
    assert "It started from other/run." in text
    assert "3 steps of 32 samples, about 2 seconds of training at 64 samples a second (CPU, fp32)" in text
    assert "The loss went from 4 to 1.333." in text
    assert "5 of 6 metrics are better than chance. Not better: matching, five cases 0.312 (chance 0.375)" in text
    assert "R@1, mean of 2" in text and "0.375" in text


def test_runs_stand_side_by_side_with_their_difference(tmp_path: Path):
    better = json.loads(json.dumps(METRICS))
    better["retrieval"]["text_to_image"] |= {"R@1": 0.75, "median_rank": 2.5}
    better["transcription"]["character_error_rate"] = 0.25
    first, second = make_run(tmp_path / "one"), make_run(tmp_path / "two", metrics=better)
    html, found = report(first, second)
    assert found.row("text → image: R@1") == ["0.500", "0.750+0.250 ▲", "0.005"]
    assert found.row("text → image: median rank") == ["1.5", "2.5+1.0 ▼", "–"]  # less is better
    assert found.row("character error rate") == ["0.125", "0.250+0.125 ▼", "0.900"]
    assert found.row("masked words right") == ["0.625", "0.625±0.000", "0.062"]
    assert [line["run"] for line in curves(html)["loss"]["series"]] == [0, 1]


def test_evaluations_of_one_split_stand_beside_each_other(tmp_path: Path) -> None:
    """As with beam search and without it: their folders tell them apart."""
    run = make_run(tmp_path / "mine")
    beams = json.loads(json.dumps(METRICS))
    beams["retrieval"]["text_to_image"]["R@1"] = 0.875
    (run / "eval-beams").mkdir()
    (run / "eval-beams" / "metrics.json").write_text(json.dumps(beams), encoding="utf-8")
    _, found = report(run)
    assert ["", "eval-beams", "eval-test", "chance"] in found.rows
    assert found.row("text → image: R@1") == ["0.875", "0.500−0.375 ▼", "0.005"]
    assert "On the split test (eval-test)" in found.text and "On the split test (eval-beams)" in found.text
    other = make_run(tmp_path / "alone")
    _, alone = report(other)
    assert "eval-" not in alone.text
    _, both = report(other, run)  # which has another evaluation, too
    assert ["", "alone", "mine, eval-beams", "mine, eval-test", "chance"] in both.rows
    assert both.row("text → image: R@1") == ["0.500", "0.875+0.375 ▲", "0.500±0.000", "0.005"]


def test_an_evaluation_warns_of_the_step_that_it_is_of(tmp_path: Path) -> None:
    """Of its checkpoint: early in a run all is at chance. Where there is no log it is of the end."""
    run = make_run(tmp_path / "mine", steps=100)
    early = run / "eval-test@step-00000005"
    (run / "eval-test").rename(early)
    assert findings(read_runs([run])[0]) == []
    (early / "metrics.json").write_text(json.dumps(METRICS | {"checkpoint": "mine/checkpoints/step-00000040"}))
    assert [found.step for found in findings(read_runs([run])[0])] == [40]
    (early / "metrics.json").write_text(json.dumps(METRICS | {"checkpoint": "pretrained/opt_demo"}))
    early.rename(run / "eval-test")
    (run / "metrics.jsonl").unlink()
    assert [found.step for found in findings(read_runs([run])[0])] == [100]


def test_an_image_is_a_sample_of_an_image_tokenizer_however_many_captions_it_has(tmp_path: Path) -> None:
    for task, said in (
        ("pretrain", "3 steps of 20 samples: 0.6 passes"),
        ("image_tokenizer", "20 samples: 3.0 passes"),
    ):
        (run,) = read_runs([make_run(tmp_path / task, f"task={task}", "data.batch_size=20")])
        run.data = {"splits": {"train": {"samples": 100, "pictures": 20, "text": 100, "image": 100, "audio": 0}}}
        assert any(said in sentence for sentence in sentences(run)), sentences(run)


def test_only_equal_galleries_are_compared(tmp_path: Path):
    other = METRICS | {"gallery": 1000}
    _, found = report(make_run(tmp_path / "one"), make_run(tmp_path / "two", metrics=other))
    assert "Retrieval by embeddings among 200, split test" in found.text
    assert "Retrieval by embeddings among 1,000, split test" in found.text
    assert sum(row[:1] == ["text → image"] for row in found.rows) == 2  # a table each


def test_only_equal_samples_are_compared(tmp_path: Path):
    """Splits of one name and size that hold other samples, or that an earlier version has not named."""
    data = {digest: METRICS | {"data": {"path": "data", "sha256": digest * 64}} for digest in "ab"}
    one, again = (make_run(tmp_path / name, metrics=data["a"]) for name in ("one", "again"))
    _, found = report(one, again)
    assert sum(row[:1] == ["text → image"] for row in found.rows) == 0  # one table of both, of a line a metric
    assert "Retrieval by embeddings among 200, split test" in found.text and "data aaaa" not in found.text
    _, found = report(one, make_run(tmp_path / "other", metrics=data["b"]), make_run(tmp_path / "earlier"))
    for named in ("aaaaaaaa", "bbbbbbbb", "unknown"):
        assert f"Retrieval by embeddings among 200, split test, data {named}" in found.text
    assert sum(row[:1] == ["text → image"] for row in found.rows) == 3


def test_settings_that_differ_are_shown(tmp_path: Path):
    first = make_run(tmp_path / "one", "optimizer.lr=0.001")
    second = make_run(tmp_path / "two", "optimizer.lr=0.002", "data.batch_size=48")
    _, found = report(first, second)
    assert found.row("optimizer.lr") == ["0.001", "0.002"]
    assert found.row("data.batch_size")[1] == "48"
    assert not any(row[:1] == ["optimizer.beta1"] for row in found.rows)
    assert "optimizer.beta1: 0.9" in found.text  # but it stands in the whole configuration
    _, alone = report(first)
    assert alone.row("optimizer.lr")[0] == "0.001"
    assert not any(row[:1] == ["optimizer.beta1"] for row in alone.rows)


def test_a_folder_of_runs_is_all_of_them(tmp_path: Path):
    make_run(tmp_path / "runs" / "one")
    make_run(tmp_path / "runs" / "two")
    (tmp_path / "runs" / "data").mkdir()
    assert {run.name for run in read_runs([tmp_path / "runs"])} == {"one", "two"}


def test_runs_of_one_name_are_told_apart():
    assert names([Path("/a/x/run"), Path("/a/y/run"), Path("/a/y/other")]) == ["x/run", "y/run", "y/other"]
    assert names([Path("/a/x/run"), Path("/a/x/other")]) == ["run", "other"]


def test_a_run_and_a_link_to_it_are_told_apart_by_how_they_were_named(tmp_path: Path):
    run, link = make_run(tmp_path / "run"), tmp_path / "link"
    link.symlink_to(run)
    assert [each.name for each in read_runs([run, link, run])] == [str(run), str(link)]


@pytest.mark.parametrize("place", ["caption", "file", "setting", "logged"])
def test_whatever_files_hold_is_escaped(tmp_path: Path, place: str):
    metrics = json.loads(json.dumps(METRICS))
    folder = tmp_path / "mine"
    if place == "file":
        folder = tmp_path / EVIL.replace("/", "∕")
    if place == "caption":
        metrics["caption"][EVIL] = 0.5
        metrics["split"] = EVIL
        metrics["versions"]["python"] = EVIL
    run = make_run(folder, *([f"data.path={json.dumps(EVIL)}"] if place == "setting" else []), metrics=metrics)
    if place == "logged":
        with (run / "metrics.jsonl").open("a") as log:
            log.write(json.dumps({"step": 4, f"eval/{EVIL}</script>": 0.5}) + "\n")
    html, found = report(run)
    assert [name for name, _ in found.elements].count("script") == 2  # the data and the page's own
    assert not [name for name, _ in found.elements if name == "img"]
    assert not [key for _, attributes in found.elements for key in attributes if key.startswith("on")]
    assert "alert(1)" in html  # it is there, as text


def test_what_is_no_character_ends_no_report(tmp_path: Path) -> None:
    """Half of a pair of surrogates: of a folder whose name is not UTF-8, and in JSON."""
    run = make_run(tmp_path / "mine", metrics=METRICS | {"split": "dev\ud83d 猫"})
    run = run.rename(tmp_path / os.fsdecode(b"caf\xe9"))
    path = write_report([run], tmp_path / "report.html")
    assert "caf?" in path.read_text(encoding="utf-8") and "On the split dev? 猫" in path.read_text(encoding="utf-8")


def test_elements_escape_their_content():
    assert tag("p", "a<b", [Markup("<br>"), 3, None], title='"') == '<p title="&quot;">a&lt;b<br>3</p>'


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda run: (run / "config.yaml").unlink(), "no config.yaml"),
        (lambda run: (run / "config.yaml").write_text("a: [b"), "config.yaml cannot be read"),
        (lambda run: (run / "config.yaml").write_bytes(b"\xff\xfe\x00"), "config.yaml cannot be read"),
        (lambda run: (run / "config.yaml").write_text("[1, 2]"), "config.yaml holds no settings"),
        (lambda run: (run / "config.yaml").write_text("task: pretrain\nnew_key: 3\n"), "this version cannot use it"),
        (lambda run: (run / "metrics.jsonl").unlink(), "nothing was logged yet"),
        (lambda run: (run / "metrics.jsonl").write_text(""), "holds nothing yet"),
        (lambda run: (run / "metrics.jsonl").write_text('{"a": 1}\n[]\n{"step": "x"}\n'), "2 damaged lines"),
        (lambda run: (run / "eval-test" / "metrics.json").unlink(), "not evaluated"),
        (lambda run: (run / "eval-test" / "metrics.json").write_text('{"gallery": 2'), "metrics.json cannot be read"),
        (lambda run: (run / "eval-test" / "metrics.json").write_text("[1]"), "metrics.json cannot be read"),
        (lambda run: (run / "eval-test" / "metrics.json").write_text('{"retrieval": {"a_to_b": 3}}'), "has not what"),
        (
            lambda run: (run / "eval-test" / "metrics.json").write_text('{"caption": {"images": 3, "bleu1": "x"}}'),
            "no number",
        ),
    ],
)
def test_what_is_missing_or_damaged_is_told_and_the_rest_is_shown(tmp_path: Path, damage: Any, told: str):
    run = make_run(tmp_path / "mine")
    damage(run)
    assert told in report(run)[1].text


def test_a_log_that_was_cut_short_is_shown_up_to_there(tmp_path: Path):
    run = make_run(tmp_path / "mine", "train.steps=9")
    whole = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(whole[:-30])
    html, found = report(run)
    assert curves(html)["loss"]["series"][0]["x"] == [1, 2]
    assert "2 of 9 steps, unfinished" in found.text
    assert "damaged" not in found.text


def test_of_a_repeated_step_the_later_line_counts_and_what_is_not_finite_is_a_gap(tmp_path: Path):
    run = make_run(tmp_path / "mine")
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"step": 2, "loss": NaN}\n{"step": 3, "loss": 7.0}\n{"step": 3, "eval/bleu4": 0.5}\n')
    html, _ = report(run)
    assert curves(html)["loss"]["series"][0] == {"run": 0, "x": [1, 2, 3], "y": [4.0, None, 7.0]}
    assert curves(html)["eval/bleu4"]["group"] == "Held-out metrics"


@pytest.mark.parametrize("made", [False, True])
def test_a_folder_without_a_run_is_one_line(tmp_path: Path, made: bool):
    if made:
        (tmp_path / "empty").mkdir()
    with pytest.raises(ReportError, match="holds no run" if made else "no such folder"):
        read_runs([tmp_path / "empty"])


def test_the_command_writes_one_file_without_mindspore(tmp_path: Path):
    run = make_run(tmp_path / "mine")
    script = (
        "import runpy, sys; sys.argv = ['report.py', *sys.argv[2:]]\n"
        f"runpy.run_path({str(ROOT / 'tools' / 'report.py')!r}, run_name='__main__')\n"
        "assert 'mindspore' not in sys.modules and 'matplotlib' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script, "-", str(run)], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{run / 'report.html'}\n"), done.stderr
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "report.py"), "no/such"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert re.fullmatch(r"error: no/such: no such folder.*\n", done.stderr)


def test_the_page_asks_for_nothing(tmp_path: Path):
    html = write_report([make_run(tmp_path / "mine")], tmp_path / "out" / "r.html").read_text(encoding="utf-8")
    found = Page(html)
    for name, attributes in found.elements:
        assert name != "link"
        for key in ("src", "href"):
            assert (attributes.get(key) or "#").startswith(("#", "data:"))
    assert html.count("url(") == html.count("url(data:font/woff;base64,") and "@import" not in html


def shown(run: Path, *rows: list[Card], title: str = "Found") -> Page:
    book = ExampleBook()
    book.add(title, rows, "a note")
    book.save(run / "eval-test" / "examples.json")
    return report(run)[1]


def image(side: int = 64) -> np.ndarray:
    return np.random.default_rng(side).integers(0, 255, (side, side, 3), np.uint8)


def test_examples_are_shown_with_their_media(tmp_path: Path):
    wave = np.sin(np.arange(RATE) / 10).astype(np.float32)
    query = Card("一只猫", (image(),), lambda: wave, "query")
    hits = [Card("猫", (image(700),), detail="share 0.75", right=True), Card("狗", detail="share 0.25", right=False)]
    found = shown(make_run(tmp_path / "mine"), [query, *hits], [query, *hits])
    kinds = [attributes["class"] for _, attributes in found.elements if "example" in (attributes.get("class") or "")]
    assert kinds == 2 * ["example query", "example right", "example wrong"]
    images = [attributes["src"] for name, attributes in found.elements if name == "img"]
    sizes = [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size for uri in images]
    assert sizes == 2 * [(64, 64), (SIDE, SIDE)]
    (audio, _) = [attributes["src"] for name, attributes in found.elements if name == "audio"]
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(audio.partition(",")[2])))
    assert rate == RATE and abs(len(heard) - len(wave)) < 2000
    for text in ("Found", "a note", "一只猫", "✓ 猫", "✗ 狗", "share 0.75"):
        assert text in found.text


def test_examples_from_elsewhere_load_nothing(tmp_path: Path):
    run = make_run(tmp_path / "mine")
    card = {"text": EVIL, "images": ["http://example.org/x.png", EVIL, 3], "audio": "//example.org/x.mp3", "head": EVIL}
    sheets = [{"title": EVIL, "rows": [[card, 3], 4]}, 5, {"rows": "x"}]
    (run / "eval-test" / "examples.json").write_text(json.dumps({"sheets": sheets}))
    found = report(run)[1]
    assert not [name for name, _ in found.elements if name in ("img", "audio", "iframe")]
    assert [name for name, _ in found.elements].count("script") == 2


def test_an_evaluation_without_examples_shows_its_figures(tmp_path: Path):
    run = make_run(tmp_path / "mine")
    figures = run / "eval-test" / "figures"
    figures.mkdir()
    Image.fromarray(image(1800)).resize((1800, 900)).save(figures / "captions.png")
    Image.fromarray(image()).save(figures / "matching.png")  # its numbers are a matrix on the page
    (figures / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (picture,) = [attributes for name, attributes in report(run)[1].elements if name == "img"]
    assert picture["alt"] == "captions"
    assert Image.open(io.BytesIO(base64.b64decode(picture["src"].partition(",")[2]))).size == (1100, 550)


def test_the_page_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("src.report.shown.MOST_BYTES", 1 << 20)
    run = make_run(tmp_path / "mine")
    book = ExampleBook()
    book.add("Large", [[Card(images=[image(159)] * 150)]])
    book.add("Small", [[Card(images=[image()])]])
    book.save(run / "eval-test" / "examples.json")
    html, found = report(run)
    assert len(html) < 1 << 20
    assert "Left out beyond 1 MB: 1 sheets" in found.text and "Small" in found.text and "Large" not in found.text


def test_matrices_show_what_was_answered(tmp_path: Path):
    metrics = METRICS | {
        "zero_shot": {"items": 4, "recall": {"cat": 0.5, EVIL: 1.0}, "confusion": [[2, 0], [1, 1]], "top_1": 0.75}
        | {"chance_top_1": 0.5, "mean_recall": 0.75, "majority": 0.5, "count": {}}
    }
    found = report(make_run(tmp_path / "mine", metrics=metrics))[1]
    assert found.row("text+audio (7)") == ["0.29", "0.29", "0.43", "0.00", "0.00"]
    assert found.row("cat (2)") == ["0.50", "0.50"]
    # of the class in the middle nothing could be read: it has no recall, but an answer may be it
    metrics["zero_shot"] |= {"labels": ["cat", "eel", EVIL], "confusion": [[1, 1, 0], [0, 0, 0], [1, 0, 1]]}
    found = report(make_run(tmp_path / "unread", metrics=metrics))[1]
    assert found.row("cat (2)") == ["0.50", "0.50", "0.00"]
    del metrics["zero_shot"]["labels"]
    metrics["zero_shot"]["confusion"] = [[2, 0], [1, "x"]]
    assert not [row for row in report(make_run(tmp_path / "other", metrics=metrics))[1].rows if row[:1] == ["cat (2)"]]


def test_warnings_come_from_the_log_and_from_evaluations(tmp_path: Path):
    run = make_run(tmp_path / "mine", steps=100)
    text = report(run)[1].text
    assert (
        "objective at chance, step 100: matching, five cases (Masked modelling and matching, split test) is 0.312"
        in text
    )
    assert "loss diverging" not in text
    with (run / "metrics.jsonl").open("a") as log:
        log.writelines(json.dumps({"step": step, "loss": 9.0}) + "\n" for step in range(101, 107))
    found = findings(read_runs([run])[0])
    assert [finding.name for finding in found] == ["loss_diverging", "objective_at_chance"]
    assert "the loss is 9" in report(run)[1].text and "2 warnings" in report(run)[1].text
    fine = METRICS | {"masked": {"mlm_accuracy": 0.625, "mlm_chance": 0.0625}}
    assert "No warnings: fine." in report(make_run(tmp_path / "fine", metrics=fine))[1].text


def test_damaged_embeddings_end_no_report(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine", metrics=METRICS | {"embeddings": {"image": 3}})
    assert "Which of text, image and audio belong together" in report(run)[1].text


def test_embeddings_that_an_evaluation_finds_collapsed_are_a_warning(tmp_path: Path):
    spread = {"effective_rank": 30.5, "dimensions": 128, "items": 200}
    found = {"text": {"mean_cosine": 0.97, **spread}, "image": {"mean_cosine": 0.1, **spread}}
    run = make_run(tmp_path / "mine", metrics={"embeddings": found, "parameters": {}})
    (warning,) = findings(read_runs([run])[0])
    assert warning.name == "embeddings_collapsed" and "text embeddings have a mean cosine of 0.97" in warning.figure
    _, shown = report(run)
    assert shown.row("text") == ["0.970", "30.50"] and shown.row("image") == ["0.100", "30.50"]


def test_error_rates_are_no_better_than_chance_where_they_are_as_high(tmp_path: Path):
    metrics = {"transcription": {"character_error_rate": 0.9, "clips": 40, "chance": {"character_error_rate": 0.9}}}
    run = make_run(tmp_path / "mine", metrics=metrics)
    assert [finding.figure.partition(" (")[0] for finding in findings(read_runs([run])[0])] == [
        "1 − character error rate"
    ]
    assert report(run)[1].row("character error rate") == ["0.900 ◦", "0.900"]


def test_the_mean_of_several_directions_has_a_chance_where_each_has_one():
    rows = [Measure("s", "a", "R@1", 0.2, 0.01), Measure("s", "b", "R@1", 0.4, 0.05), Measure("s", "b", "R@5", 0.9)]
    assert headlines(rows) == [Measure("s", "", "R@1, mean of 2", pytest.approx(0.3), pytest.approx(0.03))]
    rows[0] = Measure("s", "a", "R@1", 0.2)
    assert headlines(rows) == [Measure("s", "", "R@1, mean of 2", pytest.approx(0.3))]


def test_the_time_of_a_training_counts_every_process():
    rates = {2: 64.0, 4: None, 8: 128.0}  # a line without a rate has been evaluated or saved
    run = SimpleNamespace(settings={"data.batch_size": 32}, series={"samples_per_second": rates}, state={"ranks": 2})
    assert seconds_of_steps(run) == 2 * 32 * 2 / 64 + 4 * 32 * 2 / 128


def test_settings_differ_where_any_run_has_another():
    runs = [{"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 2}, {"a": 1, "b": 9, "c": 3}]
    assert differing(runs) == [("b", [2, 2, 9]), ("c", [3, ..., 3])]


def test_chance_stands_beside_held_out_curves(tmp_path: Path):
    run = make_run(tmp_path / "mine")
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"step": 2, "eval/mlm": 0.5, "chance/mlm": 0.25}\n{"step": 3, "eval/mlm": 0.75}\n')
    found = curves(report(run)[0])
    assert found["eval/mlm"]["series"] == [{"run": 0, "x": [2, 3], "y": [0.5, 0.75], "chance": [0.25, None]}]
    assert "chance/mlm" not in found


def test_long_curves_keep_their_peaks_and_the_page_its_size(tmp_path: Path):
    run = make_run(tmp_path / "mine", steps=30_000)
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"step": 17321, "loss/mlm": 99.0}\n{"step": 17322, "loss/mlm": NaN}\n')
    html, found = report(run)
    line = curves(html)["loss/mlm"]["series"][0]
    assert len(line["x"]) <= 2001 and line["x"] == sorted(line["x"]) and line["x"][-1] == 30_000
    assert line["y"][line["x"].index(17321)] == 99.0
    assert len(html) < 1 << 20 and "its lowest and its highest value" in found.text


def test_a_thinned_curve_keeps_its_peaks_both_ways() -> None:
    values = dict.fromkeys(range(5 * POINTS), 1.0) | {123: 9.0, 456: -9.0, 789: None}
    values |= {5 * POINTS - 3: 1.5, 5 * POINTS - 2: 0.5}  # the last value is neither end of its stretch
    found = thinned(values)
    assert len(found) <= POINTS + 1 and (found[123], found[456]) == (9.0, -9.0)
    assert found.items() <= values.items() and list(found) == sorted(found) and max(found) == max(values)


def test_the_mean_of_a_thinned_curve_is_that_of_what_was_logged(tmp_path: Path) -> None:
    """Of peaks that every tenth value has, its extremes would show far more."""
    values = {step: 10.0 if step % 10 == 0 else 1.0 for step in range(1, 5 * POINTS + 1)} | {7: None}
    means, counts = stretch_means(values, thinned(values))
    assert len(means) == len(counts) == len(thinned(values)) and sum(counts) == 5 * POINTS - 1
    assert np.average(means, weights=counts) == pytest.approx(1.9, abs=1e-3)
    run = make_run(tmp_path / "mine", steps=5 * POINTS)
    drawn = curves(report(run)[0])
    line = drawn["loss/mlm"]["series"][0]
    assert len(line["x"]) == len(line["means"]) == len(line["counts"]) and line["counts"][0] == 5
    assert line["means"][0] == pytest.approx(3 * sum(1 / step for step in range(1, 11)) / 10, rel=1e-4)
    assert "means" not in drawn["lr"]["series"][0], "what is set is not smoothed"
    assert "means" not in curves(report(make_run(tmp_path / "short"))[0])["loss/mlm"]["series"][0]


def test_a_lower_median_rank_of_generated_images_is_better() -> None:
    found = dict.fromkeys(RECALLS, 0.5) | {"median_rank": 3.0}
    signs = {each.name: each.sign for each in _image_generation({"image_generation": {"text": found}})}
    assert signs == dict.fromkeys(RECALLS, 1) | {"median rank": -1}


def test_folds_are_measures_of_their_own() -> None:
    """With the chance of a smaller gallery, which re-ranking has as well."""
    first = {"R@1": 0.75, **RECALL, "best_R@1": 0.875, "chance_R@1": 0.001}
    second = {"R@1": 0.8125, "R@5": 0.9, "R@10": 1.0, "median_rank": 1.0}
    folds = {"count": 5, "gallery": 1000, "retrieval": {"text_to_image": first}}
    by_embeddings, reranked = (
        f"Retrieval {how}, mean of 5 galleries of 1,000" for how in ("by embeddings", "re-ranked")
    )
    expected = [
        Measure(by_embeddings, "text → image", "R@1", 0.75, 0.001),
        Measure(by_embeddings, "text → image", "R@5", 0.75),
        Measure(by_embeddings, "text → image", "R@10", 0.875),
        Measure(by_embeddings, "text → image", "median rank", 1.5, sign=-1),
        Measure(by_embeddings, "text → image", "best R@1 that equal inputs allow", 0.875, sign=0),
    ]
    assert measures({"folds": folds}) == measures({"folds": folds | {"reranked": {}}}) == expected
    found = measures(METRICS | {"folds": folds | {"reranked": {"text_to_image": second}}})
    assert [one for one in found if one.section == by_embeddings] == expected
    assert [one for one in found if one.section == reranked] == [
        Measure(reranked, "text → image", "R@1", 0.8125, 0.001),
        Measure(reranked, "text → image", "R@5", 0.9),
        Measure(reranked, "text → image", "R@10", 1.0),
        Measure(reranked, "text → image", "median rank", 1.0, sign=-1),
    ]
    whole = [one.chance for one in found if one.section.endswith("among 200") and one.name == "R@1"]
    assert whole == [0.005, 0.005], "the whole gallery has its own"


def test_answers_are_measured_as_a_whole_and_by_type_of_question() -> None:
    """Beside the best constant answer of each; the whole is what a run is judged by."""
    types = {
        "colour": {"accuracy": 0.75, "majority": 0.25, "answer": "红", "questions": 900},
        "count": {"accuracy": 0.5, "majority": 0.625, "answer": "1", "questions": 300},
    }
    spoken = {"accuracy": 0.25, "majority": 0.375, "questions": 4, "types": {}}
    found = {"text+image": {"accuracy": 0.6875, "majority": 0.3125, "questions": 1200, "types": types}}
    rows = measures({"vqa": found | {"image+audio": spoken}})
    typed, heard = "1,200 questions answered from text+image", "4 questions answered from image+audio"
    assert rows == [
        Measure(typed, "all", "VQA accuracy", 0.6875, 0.3125),
        Measure(typed, "colour", "VQA accuracy", 0.75, 0.25),
        Measure(typed, "count", "VQA accuracy", 0.5, 0.625),
        Measure(heard, "all", "VQA accuracy", 0.25, 0.375),
    ]
    assert [row.at_chance for row in rows] == [False, False, True, True] and headlines(rows) == [rows[0], rows[3]]


DATA = {"samples": 1234, "regions": 0, "text": 1230, "image": 1000, "audio": 0}


@pytest.mark.parametrize(
    ("settings", "data", "said"),
    [
        (("data.path=data",), {}, "Data: data."),
        (("data.path=data", "data.train_split=other"), {"splits": {"train": DATA}}, "Data: data."),
        (
            ("data.path=data",),
            {"splits": {"dev": DATA | {"samples": 5}, "train": DATA}, "about": {"source": "flickr8k"}},
            "Data: data (corpus flickr8k), 1,234 training samples: 1,230 with text, 1,000 with image.",
        ),
        (
            ("data.path=data",),
            {"splits": {"train": DATA | {"audio": 7}}},
            "Data: data, 1,234 training samples: 1,230 with text, 1,000 with image, 7 with audio.",
        ),
        (
            ("data.path=", "data.sources=[{path: a, weight: 1}, {path: b, weight: 2}]"),
            {},
            "Data: 2 sources, see data.sources.",
        ),
    ],
)
def test_the_summary_says_what_the_data_holds(tmp_path: Path, settings: tuple, data: dict, said: str) -> None:
    (run,) = read_runs([make_run(tmp_path / "mine", *settings)])
    run.data = data
    assert said in sentences(run)


def test_the_data_is_found_from_where_a_run_was_started(
    tmp_path: Path, tiny: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its settings name it and the run's folder from there; who reports may be elsewhere, and the run have moved."""
    run, data = make_run(tmp_path / "start" / "runs" / "mine", "train.output=runs/mine"), tmp_path / "start" / "data"
    data.mkdir()
    shutil.copy(Path(tiny.data.path) / "dataset.json", data)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (found,) = read_runs([run])
    assert found.data == read_info(tiny.data.path) and not found.problems
    (found,) = read_runs([shutil.move(run, tmp_path / "start" / "runs" / "other")])
    told = "what the training data holds is not known: data: no such dataset folder"
    assert not found.data and [problem.partition(" (")[0] for problem in found.problems] == [told]
    monkeypatch.chdir(tmp_path / "start")
    assert read_runs([Path("runs/other")])[0].data
    edit_info(data, {"about": "flickr8k"})
    (problem,) = read_runs([Path("runs/other")])[0].problems
    assert problem.startswith("what the training data holds is not known: data/dataset.json is damaged")


def test_a_checkpoint_that_says_nothing_of_processes_is_of_one(tmp_path: Path) -> None:
    """Whatever its state.json holds, the rest of the run is read."""
    run = make_run(tmp_path / "mine", "data.batch_size=32")
    place = run / "checkpoints" / "step-00000003"
    place.mkdir(parents=True)
    (run / "checkpoints" / "latest").write_text("step-00000003\n")
    for content, told in (
        ('{"ranks": 4}', "3 steps of 128 samples in 4 processes"),
        ('{"ranks": "4"}', "3 steps of 32 samples,"),
        ("[4]", "3 steps of 32 samples,"),
        ("{", "3 steps of 32 samples,"),
    ):
        (place / "state.json").write_text(content)
        assert told in report(run)[1].text, content


def test_a_loss_that_is_not_finite_at_either_end_is_said(tmp_path: Path) -> None:
    for name, losses in (("first", (None, 2.0, 1.5)), ("last", (4.0, 2.0, None))):
        (run,) = read_runs([make_run(tmp_path / name)])
        run.series["loss"] = dict(enumerate(losses, 1))
        assert "The loss was not finite at its first or last logged step." in sentences(run)
    run.series["loss"] = {1: 4.0, 2: None, 3: 1.5}
    assert "The loss went from 4 to 1.5." in sentences(run)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1234567, "1,234,567"),
        (12, "12"),
        (1234.6, "1,235"),
        (-2000.4, "-2,000"),
        (999.96, "1000"),
        (0.0123456, "0.01235"),
    ],
)
def test_numbers_have_four_digits_and_whole_ones_all(value: float, said: str) -> None:
    assert number(value) == said
