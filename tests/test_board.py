"""What TensorBoard shows: read back from the event files and the projector's files by their own formats."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import png
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from test_log import events
from test_training_evaluation import TRAINED, corpus

from src.config import Config, ObjectivesConfig, OptimizerConfig, TrainConfig
from src.data.pipeline import Loader
from src.data.schema import AUDIO, IMAGE, TEXT
from src.evaluation.sheets import Sheets
from src.training import log as run_log
from src.training.board import HEADER, THUMBNAIL, EvaluationSheets, Points, Shown, markdown, of_batch
from src.training.log import RunLog
from src.training.trainer import Trainer
from tests.oracles import tiny_model


def images(folder: Path) -> dict[str, list[tuple[int, np.ndarray]]]:
    """Step and pixels of every image, by tag; the sizes that the record says are the file's."""
    found: dict[str, list[tuple[int, np.ndarray]]] = {}
    for event, value in values(folder, "image"):
        pixels = np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))
        assert pixels.shape == (value.image.height, value.image.width, value.image.colorspace)
        found.setdefault(value.tag, []).append((event.step, pixels))
    return found


def texts(folder: Path) -> dict[str, list[tuple[int, str]]]:
    found: dict[str, list[tuple[int, str]]] = {}
    for event, value in values(folder, "tensor"):
        assert value.metadata.plugin_data.plugin_name == "text"
        found.setdefault(value.tag, []).append((event.step, value.tensor.string_val[0].decode()))
    return found


def values(folder: Path, kind: str) -> list[tuple[Event, object]]:
    found = [(event, value) for event in events(folder) for value in event.summary.value]
    return [(event, value) for event, value in found if value.WhichOneof("value") == kind]


def projected(folder: Path) -> tuple[np.ndarray, list[list[str]], np.ndarray]:
    """Vectors, rows and thumbnails as the projector reads them by its configuration."""
    place = folder / "tensorboard"
    lines = (place / "projector_config.pbtxt").read_text(encoding="utf-8").splitlines()
    paths = dict(line.strip().split(": ") for line in lines if "_path" in line)
    path = {name: place / value.strip('"') for name, value in paths.items()}
    vectors = np.loadtxt(path["tensor_path"], delimiter="\t", ndmin=2)
    rows = [line.split("\t") for line in path["metadata_path"].read_text(encoding="utf-8").splitlines()]
    sprite = np.asarray(Image.open(path["image_path"]))
    sides = [int(line.split(": ")[1]) for line in lines if "single_image_dim" in line]
    assert sides == [THUMBNAIL, THUMBNAIL] and sprite.shape[0] == sprite.shape[1]
    columns = sprite.shape[1] // THUMBNAIL
    cut = [
        sprite[at // columns * THUMBNAIL :, at % columns * THUMBNAIL :][:THUMBNAIL, :THUMBNAIL]
        for at in range(len(vectors))
    ]
    return vectors, rows, np.stack(cut)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    base = Config(
        model=tiny_model(), objectives=ObjectivesConfig(weights=TRAINED), optimizer=OptimizerConfig(warmup_steps=0)
    )
    return corpus(tmp_path_factory.mktemp("board"), {TEXT, IMAGE, AUDIO}, base)


def with_run(config: Config, folder: Path, **train: object) -> Config:
    settings = {"steps": 2, "log_every": 1, "save_every": 9, "eval_every": 1, "keep_checkpoints": 1, **train}
    return replace(config, train=TrainConfig(output=str(folder), **settings))


@pytest.fixture(scope="module")
def run(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    Trainer(with_run(config, folder)).run()
    return folder


def test_what_is_shown_is_read_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 7, 3), np.uint8)
    points = Points(
        rng.standard_normal((7, 3)).astype(np.float32),
        [("text", f"文{at}", str(at)) for at in range(7)],
        rng.integers(0, 256, (7, THUMBNAIL, THUMBNAIL, 3), np.uint8),
    )
    log = RunLog(tmp_path, 0, 4, True)
    log.show(3, Shown({"a/image": pixels}, {"a/text": "一个苹果"}, points))
    log.close()
    ((step, found),) = images(tmp_path)["a/image"]
    assert step == 3
    np.testing.assert_array_equal(found, pixels)
    assert texts(tmp_path) == {"a/text/text_summary": [(3, "一个苹果")]}
    vectors, rows, thumbnails = projected(tmp_path)
    np.testing.assert_allclose(vectors, points.vectors, rtol=1e-5)
    assert rows == [list(HEADER), *map(list, points.rows)]
    np.testing.assert_array_equal(thumbnails, points.thumbnails)


def test_a_table_keeps_its_columns() -> None:
    assert markdown(("a", "b"), [("x|y", "一\n二\t三")]) == "| a | b |\n| --- | --- |\n| x\\|y | 一 二 三 |"


def test_the_first_batch_is_shown_as_the_network_reads_it(config: Config, run: Path) -> None:
    batch = next(Loader(config, "train").batches())
    shown = of_batch(batch, Loader(config, "train"))
    found, size = images(run), config.model.image.size
    ((step, pixels),) = found["first_batch/image"]
    assert step == 1 and pixels.shape == (size, 4 * size, 3)
    for row in range(4):
        np.testing.assert_array_equal(pixels[:, row * size : (row + 1) * size], batch["image"][row])
    audio = config.model.audio
    assert found["first_batch/audio"][0][1].shape == (4 * audio.mels, audio.max_frames, 3)
    ((_, table),) = texts(run)["first_batch/text/text_summary"]
    assert table == shown.texts["first_batch/text"] and table.count("\n") == 5
    loader = Loader(config, "train")
    for ids in batch["text_ids"]:
        assert loader.tokenizer.decode(ids) in table
    assert "[MASK]" in table


def test_evaluations_show_sheets_texts_and_embeddings(config: Config, run: Path) -> None:
    sheets = {"captions", "matching", "retrieval_by_image", "retrieval_by_speech", "retrieval_by_text"}
    found = images(run)
    assert {f"evaluation/{name}" for name in sheets} <= found.keys()
    assert all([step for step, _ in found[f"evaluation/{name}"]] == [1, 2] for name in sheets)
    assert all(pixels.shape[1] <= 1200 for shown in found.values() for _, pixels in shown)
    dev = Loader.held_out(config, "dev")
    said = [text for *_, names in dev.evaluation(6) for _, text in names]
    written = texts(run)
    for tag in ("evaluation/captions/text_summary", "evaluation/transcripts/text_summary"):
        assert [step for step, _ in written[tag]] == [1, 2]
        assert all(text in written[tag][0][1] for text in said)
    vectors, rows, thumbnails = projected(run)
    assert vectors.shape == (18, config.model.embed_dim) and rows[0] == list(HEADER)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    assert [row[0] for row in rows[1:]] == ["text"] * 6 + ["image"] * 6 + ["audio"] * 6
    assert sorted(row[1] for row in rows[1:7]) == sorted(said)
    assert len(np.unique(thumbnails.reshape(18, -1), axis=0)) == 6, "that of the sample's image"
    assert not (run / ".sheets").exists()


def test_lines_hold_chance_and_how_embeddings_lie(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    held_out = [line for line in lines if "eval/mean_R@1" in line]
    assert len(held_out) == 2
    for line in held_out:
        assert line["chance/text_to_image_R@1"] == line["chance/mean_R@1"] == pytest.approx(1 / 6)
        assert {f"chance/{name}" for name in ("cider_d", "transcription_words_right", "mlm_accuracy")} <= line.keys()
        assert all(f"eval/{name[7:]}" in line for name in line if name.startswith("chance/"))
        for name in ("text", "image", "audio"):
            assert -1 <= line[f"embeddings/{name}_mean_cosine"] <= 1
            assert 1 <= line[f"embeddings/{name}_effective_rank"] <= 5, "six items, centred"
        assert line["best_metric"] == line["eval/mean_R@1"]
    steps = [line for line in lines if "loss" in line]
    assert all(1 < line["logit_scale"] < 100 and 0 <= line["data_wait"] <= 1 for line in steps)
    assert not any("loss_scale" in line for line in steps), "fp32 has none"


def test_nothing_is_shown_where_it_is_switched_off(config: Config, tmp_path: Path) -> None:
    Trainer(with_run(config, tmp_path / "run", steps=1, log_samples=False)).run()
    assert images(tmp_path / "run") == {} and texts(tmp_path / "run") == {}
    assert not (tmp_path / "run" / "tensorboard" / "projector_config.pbtxt").exists()


def test_what_cannot_be_drawn_costs_no_metric(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no font\nat all")

    monkeypatch.setattr(Sheets, "retrieval", broken)
    monkeypatch.setattr("src.training.trainer.of_batch", broken)
    Trainer(with_run(config, tmp_path / "run", steps=1)).run()
    said = capsys.readouterr().out
    assert "step 1: not shown: retrieval: no font" in said and "step 1: the batch is not shown: no font" in said
    assert "eval/mean_R@1" in (tmp_path / "run" / "metrics.jsonl").read_text()
    found = images(tmp_path / "run")
    assert "evaluation/captions" in found and "evaluation/retrieval_by_text" not in found


def test_events_do_not_grow_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers go on; embeddings are those of the latest evaluation."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    monkeypatch.setattr(run_log, "MOST_EVENTS", 20_000)
    log = RunLog(tmp_path, 0, 9, True)
    for step in range(1, 6):
        log.show(step, Shown({"noise": noise}, {"words": "x"}))
        log.write(step, {"loss": 1.0})
    log.close()
    assert [step for step, _ in images(tmp_path)["noise"]] == [1, 2]
    assert [event.step for event, _ in values(tmp_path, "simple_value")] == [1, 2, 3, 4, 5]
    assert capsys.readouterr().out.count("no more images and texts") == 1


def test_a_disk_that_takes_no_image_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    log = RunLog(run, 0, 9, True)
    run.rename(tmp_path / "gone")
    points = Points(np.ones((1, 2)), [("text", "x", "0")], np.zeros((1, THUMBNAIL, THUMBNAIL, 3), np.uint8))
    (tmp_path / "run").write_text("in the way")
    log.show(1, Shown({}, {}, points))
    assert "step 1: not shown in" in capsys.readouterr().out
    log.show(2, Shown({"no image": np.zeros((3, 3, 7))}))
    assert "step 2: not shown in" in capsys.readouterr().out
    log.close()


def test_an_image_tokenizers_batch_has_images_alone() -> None:
    batch = {"sample_id": np.arange(3), "image": np.zeros((3, 4, 4, 3), np.uint8)}
    shown = of_batch(batch, loader=None)
    assert shown.images["first_batch/image"].shape == (4, 12, 3) and not shown.texts


def test_sheets_wider_than_the_limit_are_made_smaller(tmp_path: Path) -> None:
    sheets = EvaluationSheets(None, tmp_path)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "wide.png").write_bytes(png(np.zeros((100, 2400, 3), np.uint8)))
    (tmp_path / "figures" / "broken.png").write_bytes(b"no image")
    sheets.finish({})
    assert sheets.shown.images["evaluation/wide"].shape == (50, 1200, 3)
    assert [line.partition(":")[0] for line in sheets.failed] == ["broken.png"]
