"""What a model does not read of a dataset: [UNK], and texts and audio that are cut; and what a cut text teaches."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Tensor

import src.data.coverage as module
from src.config import (
    AudioEncoderConfig,
    Config,
    ConfigError,
    DataConfig,
    DenoiseTextConfig,
    ObjectivesConfig,
    TrainConfig,
    WeightsConfig,
)
from src.config.data import SourceConfig
from src.data.coverage import Coverage, measure
from src.data.errors import DataError
from src.data.pipeline import Loader
from src.data.record import Record
from src.data.schema import AUDIO
from src.data.store import Dataset
from src.data.tokenizer import SPECIALS, Tokenizer
from src.data.writer import DatasetWriter
from src.evaluation.run import Evaluation
from src.inference.engine import Engine
from src.inference.media import Medium, losses
from src.models.build import build_model
from src.objectives.objectives import Objectives
from src.tasks import registry
from src.training.trainer import Trainer
from tests.conftest import png
from tests.oracles import tiny_model

MAX_LEN, MAX_FRAMES = 6, 16
Write = Callable[..., Config]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A dataset whose train and dev hold these captions, each with audio of so many frames, and a run on it."""

    def make(texts: list[str], frames: list[int] | None = None, stored: int = 2 * MAX_FRAMES, **data: object) -> Config:
        base = tiny_model()
        (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, *"一二三四五六七八"]) + "\n", encoding="utf-8")
        text = replace(base.text, vocab=str(tmp_path / "vocab.txt"), max_len=MAX_LEN)
        model = replace(base, text=text, audio=replace(base.audio, max_frames=MAX_FRAMES))
        with DatasetWriter(tmp_path / "data", replace(model.audio, max_frames=stored), {"name": "tiny"}) as writer:
            for split in ("train", "dev"):
                for number, caption in enumerate(texts):
                    clip = np.full((frames[number] if frames else 8, model.audio.mels), 9, np.uint8)
                    writer.add(split, Record(f"{split}-{number}", None, (caption,), (clip,)))
        read = DataConfig(path=str(tmp_path / "data"), batch_size=len(texts), prefetch=1, **data)
        train = TrainConfig(output=str(tmp_path / "run"), steps=1)
        given = DenoiseTextConfig(batch_share=1.0, given=("audio",))
        objectives = ObjectivesConfig(weights=WeightsConfig(denoise_text=1.0), denoise_text=given)
        return Config(model=model, data=read, train=train, task="speech_to_text", objectives=objectives)

    return make


def covered(config: Config) -> Coverage:
    (found,) = Loader(config, "train").coverage()
    return found


def test_unknown_tokens_and_characters_are_counted(write: Write) -> None:
    found = covered(write(["一猫猫二", "狗猫", "三四"]))
    assert (found.tokens, found.unknown) == (8, 4) and found.unknown_share == 0.5
    assert found.characters.most_common() == [("猫", 3), ("狗", 1)]


def test_a_word_is_unknown_by_the_characters_that_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, "a", "b", "##a"]), encoding="utf-8")
    tokenizer = Tokenizer(tmp_path / "vocab.txt")
    assert tokenizer.unknown_characters("AB aa 猫") == ["b", "猫"], "b begins a word, but goes on in none"
    assert tokenizer.unknown_characters("a" * 101) == ["a" * 101]


def test_training_refuses_texts_that_are_mostly_unknown(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(["一猫猫二", "狗猫", "三四"])
    with pytest.raises(DataError, match=r"50\.0% .* 猫 狗: .*build_vocab.*bert-base-chinese") as caught:
        Trainer(config)
    assert "\n" not in str(caught.value) and config.data.path in str(caught.value)
    Trainer(replace(config, data=replace(config.data, max_unknown=0.5)))
    assert capsys.readouterr().out.count("50.0%") == 1
    with pytest.raises(ConfigError, match="max_unknown"):
        replace(config.data, max_unknown=1.5)


def test_every_source_is_measured(write: Write, tmp_path: Path) -> None:
    """Little of the mixture is unknown, but all of one source."""
    config = write(["一二三四"] * 9)
    with DatasetWriter(tmp_path / "other", replace(config.model.audio, max_frames=32), {"name": "tiny"}) as writer:
        writer.add("train", Record("x", None, ("猫",), (None,)))
    sources = SourceConfig(config.data.path), SourceConfig(str(tmp_path / "other"))
    mixed = replace(config.data, path="", sources=sources)
    shares = [found.unknown_share for found in Loader(replace(config, data=mixed), "train").coverage()]
    assert shares == [0, 1]


def test_measured_samples_are_spread_over_the_split(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEASURED", 3)
    config = write(["一", "猫", "一二", "猫", "一二三"])
    found = covered(config)
    assert found.texts.values.tolist() == [3, 4, 5] and found.unknown == 0


def test_what_was_not_looked_at_is_not_spoken_of(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between the first and the last lies the longest text, with a character that the vocabulary lacks."""
    monkeypatch.setattr(module, "MEASURED", 2)
    config = write(["一", "一二三四五六七八猫", "一二三四五"])
    (note,) = covered(config).notes(config.model)
    assert "split 'train', 2 of its 3 samples: 50.0% of the texts are cut" in note
    assert note.endswith("the longest 7; model.text.max_len=7 holds all of these")
    longer = replace(config.model, text=replace(config.model.text, max_len=7))
    module.report_coverage(Path(config.data.path), longer)
    said = [line for line in capsys.readouterr().out.splitlines() if line.endswith("no [UNK], and nothing is cut")]
    assert len(said) == 2 and "split 'train', 2 of its 3 samples: no [UNK]" in said[0]


def test_cut_texts_and_audio_are_counted(write: Write) -> None:
    """A text of 4 tokens fits with [CLS] and [SEP]; one of 5 has no room to end."""
    config = write(["一二三四", "一二三四五", "一二三四五六七", "一"], [16, 17, 21, 8])
    found = covered(config)
    assert found.texts.values.tolist() == [6, 7, 9, 3] and (found.texts.cut, found.texts.share) == (2, 0.5)
    assert found.clips.values.tolist() == [16, 17, 21, 8] and found.clips.cut == 2
    text, audio = found.notes(config.model)
    assert "50.0% of the texts" in text and "the longest 9" in text and "model.text.max_len=9 holds all" in text
    stride = config.model.audio.stride
    assert f"model.audio.max_frames={-(-21 // stride) * stride} holds all" in audio
    fits = replace(config.model, text=replace(config.model.text, max_len=9))
    fits = replace(fits, audio=replace(fits.audio, max_frames=24))
    dataset = Dataset(config.data.path, "train")
    assert measure(dataset, Tokenizer(fits.text.vocab), fits).notes(fits) == [], "nothing is cut, nothing is said"


def test_texts_that_do_not_count_are_told(write: Write, tmp_path: Path) -> None:
    """A transcriber reads no image in place of speech that is missing; other tasks do."""
    config = write(["一"] * 3)
    image, clip = png(np.zeros((8, 8, 3), np.uint8)), np.full((8, config.model.audio.mels), 9, np.uint8)
    with DatasetWriter(tmp_path / "half", config.model.audio, {"name": "half"}) as writer:
        for number, clips in enumerate(((clip, None), (None, clip))):
            writer.add("train", Record(f"{number}", image, ("一", "二"), clips))
    given = DenoiseTextConfig(batch_share=1.0, given=("audio", "image+audio"))
    config = replace(config, objectives=replace(config.objectives, denoise_text=given))
    half = replace(config, data=replace(config.data, path=str(tmp_path / "half"), batch_size=4))
    assert covered(config).notes(config.model) == []
    (line,) = covered(half).notes(half.model)
    wanted = "50.0% of the texts lack what objectives.denoise_text.given names, and do not count"
    assert line == f"{tmp_path}/half, split 'train': {wanted}"
    batch, _, _ = next(Loader(half, "train").evaluation(4))
    assert batch["denoise_text_presence"][[1, 2]].tolist() == [[0, 0, 0]] * 2
    assert batch["denoise_text_presence"][[0, 3], AUDIO].all()
    captions = replace(half, task="caption")
    assert covered(captions).notes(half.model) == []
    batch, _, _ = next(Loader(captions, "train").evaluation(4))
    assert batch["denoise_text_presence"][[1, 2]].tolist() == [[0, 1, 0]] * 2


def test_every_caption_is_measured_with_the_clip_that_speaks_it(write: Write, tmp_path: Path) -> None:
    config = write(["一"])
    with DatasetWriter(tmp_path / "several", config.model.audio, {"name": "several"}) as writer:
        clips = tuple(np.full((frames, config.model.audio.mels), 9, np.uint8) for frames in (5, 7, 11))
        writer.add("train", Record("three", None, ("一", "二", "三"), (clips[0], None, clips[1])))
        writer.add("train", Record("speech alone", None, (), clips[2:]))
    found = covered(replace(config, data=replace(config.data, path=str(tmp_path / "several"))))
    assert found.clips.values.tolist() == [5, 7, 11] and found.texts.values.tolist() == [3, 3, 3]


def test_audio_that_preparation_cut_is_told(write: Write) -> None:
    config = write(["一", "二"], [16, 8], stored=MAX_FRAMES)
    found = covered(config)
    assert found.clips.cut == 1 and found.stored_frames == MAX_FRAMES
    assert f"prepare with more, such as model.audio.max_frames={2 * MAX_FRAMES}" in found.notes(config.model)[0]


def test_waveforms_are_counted_in_frames() -> None:
    audio = AudioEncoderConfig(input="wav2vec2", max_frames=8)  # of 320 samples
    dataset = SimpleNamespace(info={"audio": {"max_frames": 16}})
    frames, cut, stored = module._audio_lengths(np.array([320, 2560, 2561, 5120]), dataset, audio)
    assert (frames.tolist(), cut, stored) == ([1, 8, 9, 16], 2, 16)


@pytest.mark.parametrize(("known", "noted"), [(198, False), (197, True)])
def test_evaluation_notes_what_exceeds_a_hundredth(write: Write, known: int, noted: bool) -> None:
    config = write(["一" * known + "猫", "猫"])
    config = replace(config, model=replace(config.model, text=replace(config.model.text, max_len=256)))

    def notes(config: Config) -> list[str]:
        return Evaluation(Engine(config, build_model(config)), registry.get(config.task).evaluators).notes("dev")

    assert ["[UNK]" in line for line in notes(config)] == [True] * noted
    short = replace(config, model=replace(config.model, text=replace(config.model.text, max_len=12)))
    *_, line = notes(short)
    assert "split 'dev'" in line and "50.0% of the texts are cut" in line


def test_a_cut_text_is_not_taught_to_end(write: Write) -> None:
    """The loss is the mean over the tokens that stand in the texts, and over the ends of those that end there."""
    config = write(["一二三四", "一二三四五六七"])
    batch, _, _ = next(Loader(config, "train").evaluation(2))
    tokenizer = Tokenizer(config.model.text.vocab)
    one = tokenizer.vocab.index("一")
    expected = [[one, one + 1, one + 2, one + 3, tokenizer.sep_id], [one, one + 1, one + 2, one + 3, one + 4]]
    assert batch["text_ids"][:, 1:].tolist() == expected and batch["text_mask"].tolist() == [[1] * 6] * 2
    assert batch["denoise_text_presence"].tolist() == [[0, 0, 1]] * 2
    model = build_model(config).set_train(False)
    objectives = Objectives(model, config.objectives, 2)
    level = objectives.levels[0]
    logits = np.random.default_rng(0).normal(size=(10, tokenizer.size)).astype(np.float32)
    tensors = {name: Tensor(value) for name, value in batch.items()}
    (weights,) = level.weights(tensors, ())
    assert weights.asnumpy().tolist() == [1.0] * 10
    found = float(level.text_loss(tensors, Tensor(logits), weights, Tensor(np.float32(10))).asnumpy())
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    costs = -logs[np.arange(10), np.ravel(expected)]
    smoothing = level.smoothing
    costs = (1 - smoothing) * costs - smoothing * logs.mean(1)
    assert found == pytest.approx(costs.mean(), rel=1e-5)


def test_what_a_user_types_is_told_its_share(write: Write) -> None:
    config = write(["一"])
    tokenizer = Tokenizer(config.model.text.vocab)

    def told(text: str) -> list[str]:
        return losses(Medium("", 0, text), tokenizer, config.model)

    assert told("一二三四五") == [], "all of it is read"
    (line,) = told("一二三猫")
    assert "not in the vocabulary: 猫 (25% of the tokens" in line


def test_check_data_says_what_a_model_would_not_read(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(["一二三四五", "一"])
    module.report_coverage(Path(config.data.path), config.model)
    texts, clips, cut, *dev = capsys.readouterr().out.splitlines()
    assert "split 'train': tokens of the texts: half of them have up to 7, 99 % up to 7, the longest 7" in texts
    assert "split 'train': frames of the audio clips: half of them have up to 8" in clips
    assert "split 'train': 50.0% of the texts are cut" in cut and "split 'dev': 50.0% of the texts" in dev[-1]
