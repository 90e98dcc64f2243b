"""Questions about images, from their records to answers: both heads, in text and in speech, trained and asked."""

import json
import sys
import wave
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
import torch
from conftest import kill_after, png
from mindspore import Tensor

import eval as eval_command
import infer as infer_command
from src import cli
from src.checkpoints.checkpoint import save_checkpoint
from src.checkpoints.files import ANSWERS, MODEL, read_tensors
from src.checkpoints.places import locate
from src.config import (
    AnswerConfig,
    Config,
    ConfigError,
    ObjectivesConfig,
    OptimizerConfig,
    RuntimeConfig,
    TrainConfig,
    VqaConfig,
    load_config,
)
from src.data.answers import write_answers
from src.data.errors import DataError
from src.data.questions import QuestionLoader
from src.data.record import Question, Record, pack, unpack
from src.data.schema import AUDIO, IMAGE, MODALITIES, TEXT, audio_layout, batch_fields, check_batch
from src.data.tokenizer import SPECIALS, write_vocab
from src.data.writer import DatasetWriter
from src.evaluation.vqa import VqaEvaluator
from src.export import export
from src.export.export import export_weights
from src.export.graphs import build_graphs
from src.files import ROOT
from src.inference import load
from src.inference.loading import load_model
from src.inference.questions import _Classify
from src.losses.classification import soft_binary_cross_entropy
from src.metrics.vqa import VqaAccuracy
from src.models.build import build_model
from src.objectives.answers import AnswerObjectives
from src.runtime import setup
from src.training.continuation import check_init
from src.training.muon import build_optimizer
from src.training.schedule import learning_rates
from src.training.step import TrainStep
from src.training.trainer import Trainer, trained_parameters
from src.web.service import Service, Shown
from tests.oracles import differentiate, randomise, run_mode, take, tensors, tiny_model

COLOURS = {"红": (220, 30, 30), "绿": (30, 200, 30), "蓝": (30, 30, 220)}
BOTH, TYPED, SPOKEN = ("text+image", "image+audio"), ("text+image",), ("image+audio",)
B = 8


def answer(head: str, given: tuple[str, ...]) -> ObjectivesConfig:
    return ObjectivesConfig(answer=AnswerConfig(head=head, given=given))


def record(number: int, config: Config) -> Record:
    """An image of two colours, one above the other, and the questions which is which; three people answer."""
    rng = np.random.default_rng(number)
    names = rng.permutation(list(COLOURS))[:2].tolist()
    size = config.model.image.size
    rows = np.repeat([COLOURS[name] for name in names], size // 2, 0)
    image = png(np.repeat(rows[:, None], size, 1).astype(np.uint8))
    frames = config.model.audio.max_frames // 2
    # the spoken question: low bands for what is above, high ones for what is below
    clips = [np.repeat(rng.integers(100, 200, (frames, 1)), config.model.audio.mels, 1) for _ in names]
    clips[0][:, config.model.audio.mels // 2 :] = clips[1][:, : config.model.audio.mels // 2] = 0
    asked = [Question(kind, (name, name, "黄")) for kind, name in zip(("up", "down"), names, strict=True)]
    spoken = tuple(clip.astype(np.uint8) for clip in clips)
    return Record(f"r{number}", image, ("上", "下"), spoken, questions=tuple(asked))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run on a tiny dataset of questions, with a vocabulary and a list of answers of its own."""
    setup(RuntimeConfig(), 1)  # as the command will: the device is named before the first graph runs
    folder = tmp_path_factory.mktemp("vqa")
    (folder / "vocab.txt").write_text("\n".join([*SPECIALS, *"红绿蓝黄上下"]) + "\n", encoding="utf-8")
    (folder / "answers.txt").write_text("红\n绿\n蓝\n", encoding="utf-8")
    model = tiny_model()
    text = replace(model.text, vocab=str(folder / "vocab.txt"))
    base = Config(
        task="vqa",
        model=replace(model, text=text, answers=str(folder / "answers.txt"), masked_features=False, image_codes=False),
        objectives=answer("classify", BOTH),
        optimizer=OptimizerConfig(lr=1e-2, warmup_steps=2),
    )
    with DatasetWriter(folder / "data", base.model.audio, {"name": "tiny"}) as writer:
        for split, count in (("train", 8), ("dev", 3)):
            for number in range(count):
                made = record(number + 100 * (split == "dev"), base)
                silent = made.audio if split == "train" or number else (None, made.audio[1])
                writer.add(split, replace(made, audio=silent))
    data = replace(base.data, path=str(folder / "data"), batch_size=B, prefetch=2)
    return replace(base, data=data, eval=replace(base.eval, split="dev", batch_size=4))


@pytest.fixture(scope="module")
def home(config: Config) -> Path:
    return Path(config.data.path).parent


@pytest.fixture(autouse=True)
def mode_is_kept() -> Iterator[None]:
    before = ms.get_context("mode")
    yield
    ms.set_context(mode=before)


def first_batch(config: Config) -> dict[str, np.ndarray]:
    return next(QuestionLoader(config, "train").evaluation(B))[0]


def objectives_of(config: Config, seed: int = 0) -> AnswerObjectives:
    model = build_model(config)
    randomise(model, seed=seed, spread=0.2)
    return AnswerObjectives(model, config)


def test_accuracy_is_the_share_of_questions_not_of_types() -> None:
    found = VqaAccuracy()
    for kind, answer in (("colour", "红"), ("colour", "红"), ("colour", "红"), ("count", "1")):
        found.add(kind, answer, ("红", "红", "红", "红"))
    result = found.result()
    assert result["accuracy"] == 0.75 and result["questions"] == 4
    assert {kind: each["accuracy"] for kind, each in result["types"].items()} == {"colour": 1.0, "count": 0.0}


def test_a_record_of_questions_comes_back(config: Config) -> None:
    made = record(0, config)
    row = pack(made, config.model.audio)
    layout = audio_layout("fbank", config.model.audio.mels, 0)
    found = unpack(row, *layout)
    assert (found.captions, found.questions, found.image) == (made.captions, made.questions, made.image)
    assert all(np.array_equal(one, other) for one, other in zip(found.audio, made.audio, strict=True))
    plain = pack(replace(made, questions=()), config.model.audio)
    assert json.loads(plain["captions"]) == list(made.captions), "captions are stored as they always were"
    with pytest.raises(DataError, match="has 2 questions, 1 answered"):
        pack(replace(made, questions=made.questions[:1]), config.model.audio)


def test_a_batch_holds_targets_of_either_head(config: Config) -> None:
    loader = QuestionLoader(config, "train")
    batch, n, names = next(loader.evaluation(B))
    fields = loader.fields(B)
    check_batch(batch, fields)
    assert n == B and fields.keys() > batch_fields(config.model, B, 0.15).keys()
    for row, (key, question) in enumerate(names):
        truth = next(one for one in map(lambda i: record(i, config), range(8)) if one.key == key)
        colour = truth.questions[truth.captions.index(question)].answers[0]
        assert batch["answer_classes"][row, 0] == "红绿蓝".index(colour) and batch["answer_values"][row, 0] == 1
        assert not batch["answer_values"][row, 1:].any(), "黄 is not in the list"
        said = loader.tokenizer.decode(batch["answer_ids"][row])
        assert said in (colour, "黄") and batch["answer_mask"][row].sum() == 3
    shown = {tuple(row) for row in batch["answer_given"].tolist()}
    assert shown == {(1, 1, 0), (0, 1, 1)}
    again = first_batch(config)
    assert all(np.array_equal(batch[name], again[name]) for name in batch)


def test_over_epochs_every_answer_is_generated(config: Config) -> None:
    """Of each question, and in turn from its text and from its speech."""
    batches = QuestionLoader(config, "train").batches()
    said: dict[int, set[int]] = {}
    given: dict[int, set[tuple[int, ...]]] = {}
    for _ in range(48):
        batch = next(batches)
        for number, answer_ids, shown in zip(
            *(batch[name].tolist() for name in ("sample_id", "answer_ids", "answer_given")), strict=True
        ):
            said.setdefault(number, set()).add(answer_ids[1])
            given.setdefault(number, set()).add(tuple(shown))
    batches.close()
    assert len(set().union(*said.values())) == 4  # 红绿蓝, and 黄 of one person in three
    assert len(said) == 16 and all(len(answers) == 2 for answers in said.values())
    assert all(choices == {(1, 1, 0), (0, 1, 1)} for choices in given.values())


def test_captions_are_no_questions(config: Config, tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "data", config.model.audio, {}) as writer:
        writer.add("train", replace(record(0, config), questions=()))
    data = replace(config.data, path=str(tmp_path / "data"))
    with pytest.raises(DataError, match="'train' holds no questions with answers, which task=vqa reads"):
        QuestionLoader(replace(config, data=data), "train")
    with pytest.raises(DataError, match=f"^{tmp_path}/data, {tmp_path}/data: no question with an answer$"):
        write_answers(tmp_path / "answers.txt", [tmp_path / "data"] * 2, 3)
    assert not (tmp_path / "answers.txt").exists()


def test_an_image_without_a_question_has_no_answer_in_its_row(config: Config, tmp_path: Path) -> None:
    first, other, last = (record(number, config) for number in range(3))
    with DatasetWriter(tmp_path / "data", config.model.audio, {}) as writer:
        for made in (first, replace(other, captions=(), questions=(), audio=()), last):
            writer.add("train", made)
    data = replace(config.data, path=str(tmp_path / "data"))
    batch, n, names = next(QuestionLoader(replace(config, data=data), "train").evaluation(B))
    assert n == 5 and [key for key, _ in names] == ["r0", "r0", "r1", "r2", "r2"]
    for name in ("answer_given", "answer_classes", "answer_values", "answer_ids", "answer_mask"):
        assert not batch[name][2].any(), name
    for name in ("answer_given", "answer_values", "answer_ids", "answer_mask"):
        assert batch[name][[0, 1, 3, 4]].any(axis=1).all(), name


def test_the_soft_loss_equals_torchs() -> None:
    rng = np.random.default_rng(0)
    logits = (8 * rng.standard_normal((5, 7))).astype(np.float32)
    classes = np.stack([rng.permutation(7)[:3] for _ in range(5)]).astype(np.int32)
    values, weights = rng.random((5, 3)).astype(np.float32), np.float32([1, 0, 1, 1, 0])
    values[0, 2], classes[0, 2] = 0, 0  # an unused slot

    def ours(x):
        return soft_binary_cross_entropy(x, Tensor(classes), Tensor(values), Tensor(weights)).reshape(1)

    output, (gradient,), _ = differentiate(_Function(ours), [logits], (1,))
    targets = np.zeros((5, 7), np.float32)
    for row in range(5):
        for slot in range(3):
            targets[row, classes[row, slot]] += values[row, slot]
    theirs = torch.from_numpy(logits).requires_grad_()
    kind = torch.nn.BCEWithLogitsLoss(reduction="none")
    loss = (kind(theirs, torch.from_numpy(targets)).sum(1) * torch.from_numpy(weights)).sum() / 3
    factor = float(np.random.default_rng((0, 1)).standard_normal(1).astype(np.float32)[0])
    (factor * loss).backward()
    np.testing.assert_allclose(output[0], loss.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=1e-6)


class _Function(ms.nn.Cell):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def construct(self, x):
        return self.function(x)


@pytest.mark.parametrize("head", ["classify", "generate"])
@pytest.mark.parametrize("given", [TYPED, SPOKEN, ("text",)])
def test_what_is_alike_is_fused_at_its_own_length_with_the_same_loss(
    config: Config, head: str, given: tuple[str, ...]
) -> None:
    config = replace(config, objectives=answer(head, given))
    batch, short = tensors(first_batch(config)), objectives_of(config)
    loss = float(short(batch)[0])
    short.alike = False
    assert float(short(batch)[0]) == pytest.approx(loss, rel=2e-5) and loss > 0.5


@pytest.mark.parametrize("head", ["classify", "generate"])
def test_a_blind_model_sees_no_image(config: Config, head: str) -> None:
    batch = first_batch(config)
    other = {**batch, "image": 255 - batch["image"]}
    for given, sees in ((("text", "audio"), False), (BOTH, True)):
        made = replace(config, objectives=answer(head, given))
        objectives, own = objectives_of(made), first_batch(made)["answer_given"]
        one, two = (float(objectives(tensors({**each, "answer_given": own}))[0]) for each in (batch, other))
        assert (one != two) == sees
        assert ("image_encoder" in objectives.trained_parts()) == sees
        assert ("image" in objectives.fields) == sees


def test_a_question_points_by_what_its_row_is_given_alone(config: Config) -> None:
    """A spoken question's row holds the text of the question, too: none of it may get through."""
    batch, objectives = first_batch(config), objectives_of(config)
    loss = float(objectives(tensors(batch))[0])
    spoken, written = (batch["answer_given"][:, which] == 1 for which in (AUDIO, TEXT))
    assert spoken.any() and written.any()
    for rows, kept in ((spoken, True), (written, False)):
        other = {name: value.copy() for name, value in batch.items()}
        other["text_ids"][rows, 1] = 19 - other["text_ids"][rows, 1]  # 上, the ninth token, and 下
        assert (float(objectives(tensors(other))[0]) == loss) == kept
    for rows, kept in ((written, True), (spoken, False)):
        other = {**batch, "audio": np.where(rows[:, None, None], 255 - batch["audio"], batch["audio"])}
        assert (float(objectives(tensors(other))[0]) == loss) == kept


def test_rows_without_an_answer_count_for_nothing(config: Config) -> None:
    for head in ("classify", "generate"):
        made = replace(config, objectives=answer(head, BOTH))
        objectives, batch = objectives_of(made), first_batch(made)
        kept = {name: np.concatenate([value[:4], value[:4]]) for name, value in batch.items()}
        half = {name: value.copy() for name, value in batch.items()}
        half["answer_values"][4:], half["answer_mask"][4:] = 0, 0
        assert float(objectives(tensors(half))[0]) == pytest.approx(float(objectives(tensors(kept))[0]), rel=1e-5)
        nothing = {**batch, "answer_given": np.zeros_like(batch["answer_given"])}
        assert float(objectives(tensors(nothing))[0]) == 0


@pytest.mark.parametrize("head", ["classify", "generate"])
def test_a_question_that_is_neither_read_nor_heard_teaches_nothing(config: Config, head: str, tmp_path: Path) -> None:
    """Nor is one without its image blind, where nobody asked for that: whatever else `given` names."""
    image = png(np.zeros((4, 4, 3), np.uint8))
    first, second = record(0, config).audio[0], None
    for name, given, changes, shown in (
        ("unspoken", ("image+audio", "audio"), {"image": image, "audio": (first, second)}, ([0, 1, 1], [0, 0, 1])),
        ("unseen", BOTH, {"image": None}, ()),
        ("unspoken, unseen", ("text+image", "audio"), {"image": None, "audio": (first, second)}, ([0, 0, 1],)),
    ):
        asked = replace(config, objectives=answer(head, given))
        asked = corpus(tmp_path / name, asked, **changes)
        batch = next(QuestionLoader(asked, "train").evaluation(6))[0]
        counted = [row for row in batch["answer_given"].tolist() if any(row)]
        assert len(counted) == (3 if shown else 0) and all(row in shown for row in counted)
        asked = replace(asked, data=replace(asked.data, batch_size=6))
        objectives, rows = objectives_of(asked), batch["answer_given"].any(1)
        other = {**batch, "answer_classes": np.where(rows[:, None], batch["answer_classes"], 2)}
        other["answer_ids"] = np.where(rows[:, None], batch["answer_ids"], 7)
        losses = [float(objectives(tensors(each))[0]) for each in (batch, other)]
        assert losses[0] == losses[1] and (losses[0] > 0) == bool(shown)
        if not shown:
            with pytest.raises(DataError, match="none of the questions has what objectives.answer.given names"):
                told(asked)
        else:
            assert "50.0% of the texts lack what objectives.answer.given names, and do not count" in told(asked)[0]


def test_an_answer_is_written_up_to_its_end_and_no_further(config: Config) -> None:
    made = replace(config, objectives=answer("generate", BOTH))
    objectives, batch = objectives_of(made), first_batch(made)
    written = batch["answer_mask"] == 1
    assert not written.all(1).any()
    behind = batch | {"answer_ids": np.where(written, batch["answer_ids"], 7)}
    expected = float(objectives(tensors(batch))[0])
    assert float(objectives(tensors(behind))[0]) == pytest.approx(expected, rel=1e-6)
    ends = np.arange(written.shape[1]) == written.sum(1, keepdims=True) - 1
    other = batch | {"answer_ids": np.where(ends, 7, batch["answer_ids"])}
    assert float(objectives(tensors(other))[0]) != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("head", "given"), [("classify", BOTH), ("generate", BOTH)])
def test_a_head_learns_one_batch(config: Config, head: str, given: tuple[str, ...]) -> None:
    """In text and in speech, to the answers themselves."""
    config = replace(config, objectives=answer(head, given))
    with run_mode("graph"):
        ms.set_seed(1)
        objectives = AnswerObjectives(build_model(config), config)
        optimizer = OptimizerConfig(name="muon", lr=2e-2, muon_lr=0.03, warmup_steps=2)
        update = build_optimizer(
            trained_parameters(objectives.model, objectives), optimizer, learning_rates(optimizer, 60)
        )
        step, batch = TrainStep(objectives, update, 1.0), first_batch(config)
        first = take(step, batch).losses["answer"]
        for _ in range(59):
            last = take(step, batch)
        # three answers whose values of 1 can be reached; one of two answers was sampled, and is the target
        assert last.losses["answer"] < 0.1 * first and last.losses["total"] == last.losses["answer"]


@pytest.fixture(scope="module")
def trained(config: Config, home: Path) -> dict[str, Path]:
    """A run of each head, the first of them resumed as a kill left it."""
    runs = {}
    with run_mode("pynative"):
        for head in ("classify", "generate"):
            runs[head] = home / head
            train = TrainConfig(output=str(runs[head]), steps=4, save_every=2, eval_every=4, log_every=1)
            ms.set_seed(1)
            Trainer(replace(config, objectives=answer(head, BOTH), train=train)).run()
    return runs


def losses(run: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(line["step"], line["loss/answer"]) for line in lines if "loss/answer" in line]


def test_a_run_is_logged_evaluated_and_resumed(config: Config, trained: dict[str, Path], tmp_path: Path) -> None:
    run = trained["classify"]
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {"eval/vqa_text_image", "eval/vqa_image_audio"} <= logged[-1].keys()
    assert (run / "checkpoints" / "best").exists()
    assert (locate(run) / ANSWERS).read_bytes() == Path(config.model.answers).read_bytes()
    kill_after(run, 2, tmp_path / "cut")
    train = TrainConfig(output=str(tmp_path / "cut"), steps=4, save_every=2, eval_every=4, log_every=1)
    with run_mode("pynative"):
        Trainer(replace(config, train=train), resume=True).run()
    assert losses(tmp_path / "cut") == losses(run)
    whole, cut = (read_tensors(locate(place) / MODEL) for place in (run, tmp_path / "cut"))
    assert all(np.array_equal(whole[name], cut[name]) for name in whole)


def test_other_answers_are_refused(config: Config, trained: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "answers.txt").write_text("红\n蓝\n绿\n", encoding="utf-8")
    other = replace(config, model=replace(config.model, answers=str(tmp_path / "answers.txt")))
    train = TrainConfig(output=str(trained["classify"]), steps=9)
    with pytest.raises(ConfigError, match=r"--resume: model.answers=.*is not the list of the run"):
        Trainer(replace(other, train=train), resume=True)
    train = TrainConfig(output=str(tmp_path / "new"), init_from=str(trained["classify"]))
    with pytest.raises(ConfigError, match="its answer_head knows other answers: set model.answers="):
        Trainer(replace(other, train=train))
    (tmp_path / "answers.txt").write_text(Path(config.model.answers).read_text(encoding="utf-8"), encoding="utf-8")
    assert check_init(replace(other, train=train), locate(trained["classify"]), {"answer_head"}) == [], "a copy"


def corpus(folder: Path, config: Config, **changes: object) -> Config:
    """Questions whose records lack something."""
    with DatasetWriter(folder, config.model.audio, {}) as writer:
        for number in range(3):
            made = record(number, config)
            writer.add("train", replace(made, **(changes if number or "questions" not in changes else {})))
    return replace(config, data=replace(config.data, path=str(folder)))


def told(config: Config) -> list[str]:
    """What the start of a training says of its questions."""
    (found,) = QuestionLoader(config, "train").coverage()
    found.require_known(1.0)
    return found.notes(config.model)


def test_questions_that_count_for_nothing_are_told(config: Config, tmp_path: Path) -> None:
    """By what they are answered from, and by the list of answers; where none counts, the run does not begin."""
    image = png(np.zeros((4, 4, 3), np.uint8))
    assert told(corpus(tmp_path / "whole", config, image=image)) == []
    silent = corpus(tmp_path / "silent", config, image=image, audio=(None, None))
    assert told(replace(silent, objectives=answer("classify", BOTH))) == []
    spoken = replace(silent, objectives=answer("generate", ("image+audio",)))
    with pytest.raises(DataError, match="silent, split 'train': none of the questions has what objectives.answer.gi"):
        told(spoken)
    with pytest.raises(DataError, match="silent, split 'train': none of the questions has what objectives.answer.gi"):
        told(replace(silent, objectives=answer("generate", ("image+audio", "audio"))))
    half = corpus(tmp_path / "half", config, audio=(record(0, config).audio[0], None))
    (line,) = told(replace(half, objectives=answer("generate", ("image+audio",))))
    assert "half, split 'train': 50.0% of the texts lack what objectives.answer.given names, and do not count" in line
    foreign = tuple(Question("up", (name,)) for name in ("紫", "黑"))
    mixed = corpus(tmp_path / "mixed", config, questions=foreign)  # but of the first of three records
    (line,) = told(mixed)
    assert "mixed, split 'train': 66.7% of the questions have no answer in model.answers: python tools/build_" in line
    written = replace(mixed, objectives=answer("generate", BOTH), model=replace(mixed.model, answers=""))
    (line,) = told(written)  # 4 of the 10 answers, a token each
    assert line.startswith(
        f"answers of {tmp_path}/mixed, split 'train': 40.0% of the tokens of its texts are [UNK], most"
    )
    assert "紫" in line and "黑" in line
    (found,) = QuestionLoader(written, "train").coverage()
    with pytest.raises(DataError, match="^answers of .*mixed, split 'train': 40.0%.*more than data.max_unknown=0.2 al"):
        found.require_known(0.2)
    long = corpus(tmp_path / "long", config, questions=(Question("up", ("红绿蓝黄" * 20,)),) * 2)
    (line,) = told(replace(long, objectives=written.objectives, model=written.model))
    assert line.startswith(f"answers of {tmp_path}/long") and "40.0% of the texts are cut at model.text.max_len" in line
    (tmp_path / "colours.txt").write_text("黑板\n", encoding="utf-8")
    with pytest.raises(DataError, match="mixed, split 'train': no question has an answer in model.answers: python t"):
        told(replace(mixed, model=replace(mixed.model, answers=str(tmp_path / "colours.txt"))))


def test_a_damaged_first_record_costs_only_itself(config: Config, tmp_path: Path) -> None:
    damaged = corpus(tmp_path / "damaged", config)
    content = record(0, config).image
    path = tmp_path / "damaged" / "train-00000.mindrecord"
    data = bytearray(path.read_bytes())
    data[data.index(content) + 30] ^= 1
    path.write_bytes(data)
    assert QuestionLoader(damaged, "train").coverage()[0].questions == 4


@pytest.fixture
def files(home: Path, config: Config) -> dict[str, Path]:
    """An image and a spoken question of a user's."""
    found = {"image": home / "user" / "image.png", "said": home / "user" / "said.wav"}
    found["image"].parent.mkdir(exist_ok=True)
    found["image"].write_bytes(record(0, config).image)
    with wave.open(str(found["said"]), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(np.random.default_rng(0).integers(-9000, 9000, 1600, np.int16).tobytes())
    return found


def call(monkeypatch: pytest.MonkeyPatch, command: ModuleType, *arguments: object) -> int:
    """eval.py or infer.py, without compiling: it is asked only few things."""
    monkeypatch.setattr(sys, "argv", [f"{command.__name__}.py", *map(str, arguments), "runtime.mode=pynative"])
    try:
        cli.run(command.main)
    except SystemExit as error:
        return error.code
    return 0


@pytest.mark.e2e
@pytest.mark.parametrize("head", ["classify", "generate"])
def test_a_split_is_measured_and_a_user_answered(
    head: str,
    trained: dict[str, Path],
    files: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    run = trained[head]
    assert call(monkeypatch, eval_command, "--checkpoint", run) == 0
    assert "questions, answered from image+audio" in capsys.readouterr().out
    metrics = json.loads((run / "eval-dev" / "metrics.json").read_text(encoding="utf-8"))["vqa"]
    assert metrics.keys() == set(BOTH)
    assert [metrics[choice]["questions"] for choice in BOTH] == [6, 5], "one is not spoken"
    for found in metrics.values():
        assert found["types"].keys() == {"up", "down"}
        assert 0 <= found["accuracy"] <= 1 and 1 / 3 <= found["majority"] <= 1
        assert {example["key"] for example in found["examples"]} == {"r100", "r101", "r102"}
    for question in ("上", files["said"]):
        output = run / "answers"
        options = ("--input", files["image"].parent, "--ask", question, "--output", output)
        assert call(monkeypatch, infer_command, "--checkpoint", run, *options) == 0
        made = json.loads((output / "answers.json").read_text(encoding="utf-8"))
        assert made["question"] == str(question) and list(made["answers"]) == [str(files["image"])]
        if head == "classify":
            assert made["answers"][str(files["image"])] in "红绿蓝"


def test_a_question_is_asked_about_its_own_image_in_every_batch(config: Config) -> None:
    made = replace(config, objectives=answer("classify", BOTH))

    class Encoded(list):
        def take(self, rows: np.ndarray) -> "Encoded":
            return Encoded(self[row] for row in rows.tolist())

    def said(given: dict[int, Encoded]) -> list[str]:
        return [repr(row) for row in zip(*(given[which] for which in sorted(given)), strict=True)]

    def encode(array: np.ndarray, *_: np.ndarray) -> Encoded:
        return Encoded(int(row.astype(np.int64).sum()) for row in array)

    encoder = SimpleNamespace(text=encode, image=encode, audio=encode)
    network = SimpleNamespace(image_fields=("image",))
    engine = SimpleNamespace(config=made, encoder=encoder, model=network, answerer=SimpleNamespace(answer=said))
    found = []
    for size in (2, 16):
        settings = replace(made.eval, batch_size=size)
        found.append(VqaEvaluator(engine).run(SimpleNamespace(loader=QuestionLoader(made, "dev"), settings=settings)))
    assert found[0] == found[1]
    answers = {example["answer"] for one in found[0]["vqa"].values() for example in one["examples"]}
    assert len(answers) > 5, "the stand-in of a model tells inputs apart"
    asked = {most: VqaConfig(max_items=most) for most in (0, 3, 99)}
    for most, count in ((0, 6), (3, 3), (99, 6)):
        settings = replace(made.eval, batch_size=2, vqa=asked[most])
        limited = VqaEvaluator(engine).run(SimpleNamespace(loader=QuestionLoader(made, "dev"), settings=settings))
        assert limited["vqa"]["text+image"]["questions"] == count == len(limited["vqa"]["text+image"]["examples"])


@pytest.mark.e2e
def test_the_library_answers_in_order(trained: dict[str, Path], files: dict[str, Path], config: Config) -> None:
    """Text and speech in one call, whatever stands beside a question, as the evaluation answers the same."""
    model = load(trained["classify"], ["runtime.mode=pynative"], batch_size=4)
    image = files["image"]
    questions = ["上", files["said"], "下", "上", files["said"]]
    together = model.answer([image] * 5, questions)
    alone = [model.answer([image], [question])[0] for question in questions]
    assert together == alone and set(together) <= set("红绿蓝")
    failed: dict[int, DataError] = {}
    kept = model.answer([image, "nowhere.png", image], ["上", "上", "下"], on_error=failed.__setitem__)
    assert kept == [together[0], together[2]] and list(failed) == [1]
    with pytest.raises(DataError, match="differ in number"):
        model.answer([image], ["上", "下"])
    with pytest.raises(DataError, match=r"an image: expected a text or an audio clip"):
        model.answer([image], [np.zeros((4, 4, 3), np.uint8)])


@pytest.mark.e2e
def test_the_page_asks_the_library(trained: dict[str, Path], files: dict[str, Path]) -> None:
    """A visitor's question in text or speech, about the image beside it, and what of it the model does not know."""
    model = load(trained["classify"], ["runtime.mode=pynative"], batch_size=4)
    worker = SimpleNamespace(call=lambda function, *given: function(*given))
    service = Service(worker, [Shown("", model, None, [], []), None])
    for question in ("上", files["said"]):
        told = service.ask(files["image"], question)
        assert told.texts == model.answer([files["image"]], [question])
        assert not told.notes
    (note, *_) = service.ask(files["image"], "上猫").notes
    assert note == "not in the vocabulary: 猫 (50% of the tokens of '上猫')"
    with pytest.raises(DataError, match="^lost.png: no such"):
        service.ask(files["image"].with_name("lost.png"), "上")


@pytest.mark.parametrize("given", [BOTH, ("text",), ("image+audio",)])
def test_an_exported_head_answers_as_the_library(config: Config, tmp_path: Path, given: tuple[str, ...]) -> None:
    """From whatever a row is given; and the file that deployment reads computes the same."""
    made = replace(config, objectives=answer("classify", given))
    model = build_model(made)
    randomise(model, seed=3, spread=0.3)
    model.set_train(False)
    with run_mode("graph"):
        graphs = build_graphs(model, made.model, given)
        head, cross = graphs["answer_head"], graphs["cross_encoder"]
        assert len(head.inputs) == (2 if given == ("text",) else 9)
        everything = AnswerObjectives(model, replace(made, objectives=answer("classify", BOTH)))
        encoded = everything.encode(tensors(first_batch(made)))
        handed = {f"{name}_tokens": pair[0] for name, pair in zip(MODALITIES, encoded, strict=True)}
        handed |= {f"{name}_mask": pair[1] for name, pair in zip(MODALITIES, encoded, strict=True)}
        for choice in given:
            present = tuple(sorted(MODALITIES.index(name) for name in choice.split("+")))
            presence = np.zeros((B, 3), np.int32)
            presence[:, present] = 1
            handed["presence"] = Tensor(presence)
            handed["fused"], handed["fused_mask"], _ = cross.cell(*(handed[name] for name in cross.inputs))
            logits = head.cell(*(handed[name] for name in head.inputs)).asnumpy()
            classes = _Classify(model, present)(*(array for which in present for array in encoded[which])).asnumpy()
            assert logits.shape == (B, 3) and np.array_equal(logits.argmax(1), classes)
        if given == BOTH:
            file = export._write_graph(head, tmp_path, "answer_head", "MINDIR", export.ANY)["file"]
            compared = export.compare(head, tmp_path / file, export.ANY, {})
            assert compared["max_abs_diff"] < 1e-4
            assert [port["name"] for port in compared["outputs"]] == ["answer_logits"]
    assert "answer_head" not in build_graphs(model, made.model)


def test_exported_weights_bring_their_answers(trained: dict[str, Path], files: dict[str, Path], tmp_path: Path) -> None:
    config, model = load_model(trained["classify"])
    output = export_weights(config, model, tmp_path / "exported")
    assert (output / ANSWERS).read_text(encoding="utf-8") == "红\n绿\n蓝\n"
    assert load_config(output / "config.yaml").model.answers == ANSWERS, "no path of this machine"
    settings = ["runtime.mode=pynative"]
    asked = [files["image"]] * 2, ["上", "下"]
    assert load(output, settings).answer(*asked) == load(trained["classify"], settings).answer(*asked)


def test_the_bundled_checkpoint_answers_without_being_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gallery = ROOT / "assets" / "gallery"
    model = load("opt_demo_vqa", ["runtime.mode=pynative"])
    asked = ["左边有几只猫？", "右边是什么？", "背景是什么颜色？", "猫在哪边？"]
    assert model.answer([gallery / "01.png"] * 4, asked) == ["1", "苹果", "红色", "左边"]
    options = ("--ask", "右边是什么？", "--input", gallery / "01.png", "--output", tmp_path, "runtime.mode=pynative")
    monkeypatch.setattr(sys, "argv", ["infer.py", *map(str, options)])
    infer_command.main()
    assert "苹果" in capsys.readouterr().out


def test_a_vocabulary_of_questions_spells_their_answers(config: Config, tmp_path: Path) -> None:
    write_vocab(tmp_path / "vocab.txt", [Path(config.data.path)], 99)
    found = (tmp_path / "vocab.txt").read_text(encoding="utf-8").split()
    assert set(found) == {*SPECIALS, *"上下红绿蓝黄"}


def test_the_most_frequent_answers_of_a_dataset(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_answers(tmp_path / "answers.txt", [Path(config.data.path)], 3)
    found = (tmp_path / "answers.txt").read_text(encoding="utf-8").splitlines()
    assert len(found) == 3 and set(found) < set("红绿蓝黄") and "3 answers" in capsys.readouterr().out


def test_mistakes_are_one_line(
    config: Config,
    home: Path,
    trained: dict[str, Path],
    files: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    plain = replace(config, task="retrieval", model=replace(config.model, answers=""))
    save_checkpoint(home / "plain" / "checkpoints", 1, plain, build_model(plain))
    run, image, said = trained["classify"], files["image"], files["said"]
    asked = ("--input", image, "--ask", "上")
    for checkpoint, arguments, message in (
        (home / "plain", asked, "task=retrieval: this model was not trained to answer questions about images"),
        (run, ("--ask", "上"), "--ask goes with --input"),
        (run, ("--classify", "猫", *asked), "--ask goes without --classify"),
        (run, ("--input", image, "--ask", " "), "--ask is empty"),
        (run, ("--input", image, "--ask", image), "is an image: expected a question, as text or an audio clip"),
        (run, ("--input", said, "--ask", "上"), "--input holds no image that the question could be about"),
        (run, (*asked[:3], said, "objectives.answer.given=[text+image]"), "answers from text+image, not from audio"),
    ):
        assert call(monkeypatch, infer_command, "--checkpoint", checkpoint, *arguments) == 2
        assert message in capsys.readouterr().err.strip().splitlines()[-1]
    with pytest.raises(ConfigError, match="task=retrieval: this model was not trained to answer questions"):
        load(home / "plain", ["runtime.mode=pynative"]).answer([image], ["上"])


def test_configuration_is_checked(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"model.answers: task=vqa, .*classify needs a file of answers"):
        replace(config, model=replace(config.model, answers=""))
    replace(config, objectives=answer("generate", BOTH), model=replace(config.model, answers=""))
    with pytest.raises(ConfigError, match="must be a list out of text.image, image.audio, text, audio"):
        AnswerConfig(given=("image",))
    with pytest.raises(ConfigError, match="takes its batch whole"):
        replace(config, train=replace(config.train, accumulate=2))
    assert IMAGE and not TEXT  # the order of answer_given
