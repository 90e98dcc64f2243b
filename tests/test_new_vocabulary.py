"""train.init_from with another vocabulary: which row each token starts from, and that texts are read as before."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor

import train
from src import runtime
from src.checkpoints.checkpoint import load_checkpoint_config, save_checkpoint
from src.checkpoints.files import CheckpointError, read_tensors
from src.checkpoints.places import locate
from src.config import Config
from src.data.tokenizer import SPECIALS, Tokenizer
from src.files import ROOT
from src.inference.loading import load_model
from src.models.build import build_model
from src.models.opt import OPT
from src.training.continuation import start_from
from src.training.new_vocabulary import TOKEN_ROWS, NewVocabulary
from tests.commands import command
from tests.conftest import CHARACTERS, tiny_dataset, unlisted
from tests.oracles import random, randomise, tiny_model

THEIRS = [*SPECIALS, "猫", "咪", "##咪", "c", "##a", "##t", "ca", "##x", "，", "t"]
TABLE = random(len(THEIRS), 6)  # a row for each of these
ORDINARY = TABLE[len(SPECIALS) :]


def rows(*tokens: str) -> np.ndarray:
    """The rows of some of their tokens."""
    return TABLE[[THEIRS.index(token) for token in tokens]]


def converted(*ours: str, deviation: float = 0.0, seed: int = 0) -> np.ndarray:
    """The rows that new tokens start from."""
    vocabulary = [*SPECIALS, *ours]
    return NewVocabulary(vocabulary, THEIRS).convert(TABLE, deviation, seed)[len(SPECIALS) :]


def test_every_tensor_with_a_row_for_each_token_is_converted() -> None:
    small, large = (dict(OPT(tiny_model(), size).parameters_and_names()) for size in (31, 33))
    assert {name for name in small if small[name].shape != large[name].shape} == TOKEN_ROWS.keys()


@pytest.mark.parametrize("shape", [(len(THEIRS), 6), (len(THEIRS),)], ids=["table", "bias"])
def test_another_order_is_a_permutation(shape: tuple[int, ...]) -> None:
    order = np.random.default_rng(0).permutation(len(THEIRS))
    vocabulary = NewVocabulary([THEIRS[row] for row in order], THEIRS)
    array = random(*shape)
    assert np.array_equal(vocabulary.convert(array, 0.1, 0), array[order])
    assert not (vocabulary.composed or vocabulary.fresh or vocabulary.dropped)


@pytest.mark.parametrize(
    ("token", "pieces"),
    [
        ("猫咪", ["猫", "咪"]),  # ##咪 is known, too, but no text was ever spelled with it
        ("##猫", ["猫"]),
        ("猫粮咪", ["猫", "咪"]),  # of what is known
        ("##c", ["c"]),
        ("x", ["##x"]),
        ("cat", ["ca", "##t"]),  # the longest pieces
        ("cca", ["c", "ca"]),
        ("##ta", ["##t", "##a"]),  # inside a word from its beginning on, though t is known, too
        ("ta", ["t", "##a"]),
        ("猫，", ["猫", "，"]),
    ],
)
def test_a_new_token_is_the_mean_of_its_pieces(token: str, pieces: list[str]) -> None:
    (row,) = converted(token, deviation=0.1)
    np.testing.assert_allclose(row, rows(*pieces).mean(0), rtol=1e-6)


def test_what_is_not_known_starts_from_the_mean() -> None:
    tokens = ["狗", "[unused1]", "<cat>", "zoo"]  # names in brackets are not spelled, though their letters are known
    np.testing.assert_allclose(converted(*tokens), np.tile(ORDINARY.mean(0), (len(tokens), 1)), rtol=1e-5)
    many = [chr(0x5000 + number) for number in range(4000)]
    found = converted(*many, deviation=0.1)
    np.testing.assert_allclose(found.mean(0), ORDINARY.mean(0), atol=0.01)
    np.testing.assert_allclose(found.std(0), 0.1, atol=0.01)
    assert len(np.unique(found, axis=0)) == len(many)
    assert np.array_equal(found, converted(*many, deviation=0.1)), "the same on every rank"
    assert not np.array_equal(found, converted(*many, deviation=0.1, seed=1))


def test_half_precision_is_averaged_in_full() -> None:
    half = TABLE.astype(np.float16)
    vocabulary = NewVocabulary([*SPECIALS, "猫咪"], THEIRS)
    found = vocabulary.convert(half, 0.0, 0)
    assert found.dtype == np.float32 and np.array_equal(found[:5], half[:5].astype(np.float32))
    np.testing.assert_allclose(found[5], half[5:7].astype(np.float32).mean(0), rtol=1e-6)


def test_the_table_counts_tokens() -> None:
    vocabulary = NewVocabulary([*SPECIALS, "猫", "猫咪", "狗", "[unused1]"], THEIRS)
    lines = [line.split() for line in str(vocabulary).splitlines()[2:]]
    assert lines == [
        ["kept", "6", "猫"],
        ["new,", "from", "known", "pieces", "1", "猫咪"],
        ["new,", "nothing", "known", "2", "狗"],
        ["dropped", "9", "咪", "##咪", "c", "##a", "##t", "ca", "##x", "，"],
    ]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A configuration on a tiny dataset, and a checkpoint of its network with weights of no pattern."""
    folder = tmp_path_factory.mktemp("saved")
    config = tiny_dataset(folder, 4, Config(model=tiny_model()))
    model = build_model(config)
    randomise(model)
    return config, save_checkpoint(folder / "run" / "checkpoints", 1, config, model)


def with_vocabulary(config: Config, start: Path, path: Path, tokens: list[str]) -> Config:
    path.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    model = replace(config.model, text=replace(config.model.text, vocab=str(path)))
    return replace(config, model=model, train=replace(config.train, init_from=str(start)))


def answers(model: OPT, tokenizer: Tokenizer, text_len: int) -> dict[str, np.ndarray]:
    """What a network makes of some texts; logits by the tokens of CHARACTERS."""
    texts = ["红猫，绿狗", "一只鱼", "蓝黄色。", "上下？"]  # the last has an unknown character
    encoded = [tokenizer.encode(text, text_len) for text in texts]
    ids, mask = (Tensor(np.stack(column)) for column in zip(*encoded, strict=True))
    tokens = model.text_encoder(ids, mask)
    memory = Tensor(random(len(texts), model.cross_encoder.length, 20))
    memory_mask = Tensor(np.ones(memory.shape[:2], np.int32))
    places = Tensor(np.tile(np.array([1, 2], np.int32), (len(texts), 1)))
    order = [tokenizer.vocab.index(token) for token in (*SPECIALS, *CHARACTERS)]
    return {
        "embeddings": model.embed_text(tokens, mask).asnumpy(),
        "masked_text": model.masked_text_logits(memory, places).asnumpy()[:, order],
        "decoder": model.text_decoder(ids, memory, memory_mask).asnumpy()[:, order],
    }


def test_texts_are_read_as_before(saved: tuple[Config, Path], tmp_path: Path) -> None:
    """With all tokens in other rows, [PAD] not in the first, and new ones between them."""
    config, folder = saved
    before = answers(load_model(folder)[1], Tokenizer(config.model.text.vocab), config.model.text.max_len)
    tokens = [*SPECIALS, *CHARACTERS, "狮子", "[unused1]", "红猫"]
    np.random.default_rng(1).shuffle(tokens)
    assert tokens[0] != "[PAD]"
    other = with_vocabulary(config, folder, tmp_path / "other.txt", tokens)
    model = build_model(other)
    told = start_from(model, other)
    assert told[0].startswith(f"{tmp_path / 'other.txt'} with {len(tokens)} tokens, instead of the ")
    assert told[1:] == [f"weights of {folder}"]
    after = answers(model, Tokenizer(tmp_path / "other.txt"), config.model.text.max_len)
    for name, expected in before.items():
        np.testing.assert_allclose(after[name], expected, atol=2e-5, rtol=1e-5, err_msg=name)


def test_the_same_vocabulary_is_not_worth_a_word(saved: tuple[Config, Path], tmp_path: Path) -> None:
    config, folder = saved
    tokens = Path(config.model.text.vocab).read_text(encoding="utf-8").split()
    same = with_vocabulary(config, folder, tmp_path / "same.txt", tokens)
    model = build_model(same)
    assert start_from(model, same) == [f"weights of {folder}"]
    for name, array in read_tensors(folder / "model.safetensors").items():
        assert np.array_equal(dict(model.parameters_and_names())[name].asnumpy(), array), name


def test_a_vocabulary_that_is_not_the_weights_own(saved: tuple[Config, Path], tmp_path: Path) -> None:
    config, folder = saved
    shutil.copytree(folder, tmp_path / "copy")
    unlisted(tmp_path / "copy")
    with (tmp_path / "copy" / "vocab.txt").open("a", encoding="utf-8") as file:
        file.write("狮\n")
    other = with_vocabulary(config, tmp_path / "copy", tmp_path / "other.txt", [*SPECIALS, *CHARACTERS, "虎"])
    with pytest.raises(CheckpointError) as error:
        start_from(build_model(other), other)
    assert str(error.value).startswith(f"{tmp_path / 'copy' / 'vocab.txt'} has 32 tokens, but tensor ")


@pytest.mark.e2e
def test_the_bundled_checkpoint_is_a_start_for_other_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By train.py, in the sizes of its configuration file, on data with a vocabulary of its own."""
    bundled = ROOT / "pretrained" / "opt_demo"
    sizes = load_checkpoint_config(bundled).model
    config = tiny_dataset(tmp_path, 8, Config(model=sizes))
    monkeypatch.setattr(runtime, "setup", lambda *_: (0, 1))  # MindSpore refuses a device once it has run something
    own = ("data.path=data", "data.eval_path=data", "model.text.vocab=vocab.txt", "train.output=run")
    small = ("train.steps=2", "train.log_every=1", "train.eval_every=2", "data.batch_size=4", "runtime.mode=pynative")
    with command(train.main, tmp_path, monkeypatch, capsys) as call:
        arguments = ("--config", ROOT / "config/retrieval/demo_full.yaml", *own, *small)
        code, shown, errors = call(*arguments, f"train.init_from={bundled}")
        assert code == 0, errors
    known = set((bundled / "vocab.txt").read_text(encoding="utf-8").split())
    ours = (tmp_path / "vocab.txt").read_text(encoding="utf-8").split()
    assert f"vocab.txt with {len(ours)} tokens, instead of the {len(known)} of {bundled}:" in shown
    (kept,) = (line.split() for line in shown.splitlines() if line.startswith("kept"))
    assert kept[1] == str(len(known & set(ours)))
    losses = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([line["loss"] for line in losses if "loss" in line]).all()
    assert any("eval/mean_R@1" in line for line in losses)
    place = locate(tmp_path / "run")
    assert (place / "vocab.txt").read_bytes() == Path(config.model.text.vocab).read_bytes()
    assert read_tensors(place / "model.safetensors")["text_encoder.tokens"].shape == (len(ours), sizes.text.width)
