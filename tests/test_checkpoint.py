"""Checkpoints: whole or absent, equal to the bit, and every damage named."""

import errno
import itertools
import os
import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn
from safetensors.numpy import load_file, save_file

from src.checkpoints import checkpoint
from src.checkpoints.checkpoint import (
    load_checkpoint_config,
    load_parts,
    load_weights,
    note_evaluation,
    read_state,
    save_checkpoint,
    set_parameters,
    write_model,
)
from src.checkpoints.files import MODEL, CheckpointError, read_tensors, write_tensors
from src.checkpoints.places import locate
from src.config import Config, ConfigError
from src.inference.loading import load_model
from src.models.build import build_model
from src.models.opt import OPT
from tests.conftest import unlisted
from tests.disk import Disk
from tests.oracles import VOCAB, randomise, tiny_model

FILES = {"config.yaml", "vocab.txt", "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Of a tiny model with a vocabulary of its own."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(0x4E00 + i) for i in range(VOCAB - 5))]
    vocab = tmp_path_factory.mktemp("vocab") / "words.txt"
    vocab.write_text("\n".join(words) + "\n", encoding="utf-8")
    model = tiny_model()
    return Config(seed=7, model=replace(model, text=replace(model.text, vocab=str(vocab))))


@pytest.fixture(scope="module")
def model(config: Config) -> OPT:
    cell = build_model(config)
    randomise(cell)
    return cell


def moments() -> dict[str, Parameter]:
    return {
        "moment1.text": Parameter(Tensor(np.arange(6, dtype=np.float32).reshape(2, 3)), name="moment1.text"),
        "step": Parameter(Tensor(41, ms.int32), name="step"),
    }


@pytest.fixture
def saved(tmp_path: Path, config: Config, model: OPT) -> Path:
    """A run folder with one checkpoint."""
    save_checkpoint(tmp_path / "checkpoints", 41, config, model, moments(), {"best": 0.5})
    return tmp_path


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(CheckpointError) as error:
        action()
    message = str(error.value)
    assert "\n" not in message and 0 < len(message) < 400
    return message


def values(cell: OPT) -> dict[str, np.ndarray]:
    return {name: parameter.asnumpy().copy() for name, parameter in cell.parameters_and_names()}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and np.array_equal(found[name], value), name


def test_round_trip_is_equal_to_the_bit(saved: Path, config: Config, model: OPT) -> None:
    folder = locate(saved)
    assert folder == saved / "checkpoints" / "step-00000041" and {p.name for p in folder.iterdir()} == FILES
    for path in (saved, folder, str(saved)):
        loaded_config, loaded = load_model(path)
        assert_same(values(loaded), values(model))
    text = replace(config.model.text, vocab=str(folder / "vocab.txt"))
    assert loaded_config == replace(config, model=replace(config.model, text=text))
    assert read_state(folder) == {"step": 41, "best": 0.5}
    state = read_tensors(folder / "optimizer.safetensors")
    assert_same(state, {name: parameter.asnumpy() for name, parameter in moments().items()})


def test_optimizer_state_is_restored(saved: Path) -> None:
    path = locate(saved) / "optimizer.safetensors"
    target = {name: Parameter(Tensor(np.zeros_like(p.asnumpy())), name=name) for name, p in moments().items()}
    set_parameters(target, read_tensors(path), path)
    for name, parameter in moments().items():
        assert target[name].dtype == parameter.dtype
        assert np.array_equal(target[name].asnumpy(), parameter.asnumpy())


def test_a_loaded_model_computes_the_same(saved: Path, model: OPT) -> None:
    _, loaded = load_model(saved)
    ids = Tensor(np.array([[2, 9, 8, 3, 0, 0, 0]], np.int32))
    mask = Tensor(np.array([[1, 1, 1, 1, 0, 0, 0]], np.int32))
    outputs = [cell.text_encoder(ids, mask).asnumpy() for cell in (model, loaded)]
    assert np.array_equal(*outputs)


def test_a_folder_that_moved_still_loads(saved: Path, model: OPT, tmp_path: Path) -> None:
    """It carries its vocabulary: the original is not needed."""
    moved = tmp_path / "elsewhere"
    shutil.move(locate(saved), moved)
    config, loaded = load_model(moved)
    assert config.model.text.vocab == str(moved / "vocab.txt")
    assert_same(values(loaded), values(model))


def test_overrides_reach_the_config(saved: Path) -> None:
    assert load_checkpoint_config(locate(saved), ["eval.retrieval.gallery_size=5"]).eval.retrieval.gallery_size == 5
    with pytest.raises(ConfigError, match="eval.retrieval.galery_size"):
        load_model(saved, ["eval.retrieval.galery_size=5"])


def test_weights_of_reranking_beside_a_checkpoint_are_its_own(saved: Path, tmp_path: Path) -> None:
    """Whatever configuration it is used with; weights on the command line replace all of them."""
    folder, other = locate(saved), tmp_path / "other.yaml"
    other.write_text("eval: {rerank: {top_k: 7, likelihood: 0.25}}\n", encoding="utf-8")
    chosen = "eval: {rerank: {embedding: 0.5, matching: 0.0, likelihood: 1.0, tuned_on: dev}}\n"
    (folder / "reranking.yaml").write_text(chosen, encoding="utf-8")
    for config_file in (None, other):
        found = load_checkpoint_config(folder, (), config_file).eval.rerank
        assert (found.embedding, found.matching, found.likelihood, found.tuned_on) == (0.5, 0.0, 1.0, "dev")
    assert found.top_k == 7
    found = load_checkpoint_config(folder, ["eval.rerank.matching=2"], other).eval.rerank
    assert (found.embedding, found.matching, found.likelihood, found.tuned_on) == (1.0, 2.0, 0.25, "")
    for text in ("eval: 1\n", "[", ""):
        (folder / "reranking.yaml").write_text(text, encoding="utf-8")
        assert "reranking.yaml does not hold eval.rerank" in refused(lambda: load_checkpoint_config(folder))


def test_another_configuration_says_what_is_done_but_not_what_the_network_is(
    saved: Path, config: Config, tmp_path: Path
) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(
        "model: {embed_dim: 16, text: {layers: 3}}\neval: {retrieval: {gallery_size: 7}}\n", encoding="utf-8"
    )
    found, _ = load_model(saved, config_file=path)
    assert found.eval.retrieval.gallery_size == 7
    assert replace(found.model, text=replace(found.model.text, vocab=config.model.text.vocab)) == config.model
    assert load_checkpoint_config(locate(saved), ["model.embed_dim=20"], path).model.embed_dim == 20


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("x")])
def test_a_place_without_a_checkpoint(tmp_path: Path, make: Callable[[Path], object]) -> None:
    place = tmp_path / "run"
    make(place)
    assert "no checkpoint in" in (message := refused(lambda: locate(place))) and str(place) in message


def test_latest_that_points_to_nothing(saved: Path) -> None:
    shutil.rmtree(locate(saved))
    assert "step-00000041, which is not there" in refused(lambda: locate(saved))
    for content in (b"", b"\xff\xfe", b"step\0"):
        (saved / "checkpoints" / "latest").write_bytes(content)
        assert "no checkpoint in" in refused(lambda: locate(saved))


def change(folder: Path, edit: Callable[[dict[str, np.ndarray]], object]) -> Path:
    path = unlisted(folder) / "model.safetensors"
    arrays = load_file(path)
    edit(arrays)
    save_file(arrays, path)
    return path


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda arrays: arrays.pop("cross_encoder.cls"), "tensor cross_encoder.cls is not in"),
        (lambda arrays: arrays.update(extra=np.zeros(1)), "tensor extra is not in the model but in"),
        (
            lambda arrays: arrays.update({"scale.log_scale": np.zeros((1, 2), np.float32)}),
            "tensor scale.log_scale of",
        ),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_tensors_of_another_model(saved: Path, config: Config, edit: Callable, says: str) -> None:
    path = change(locate(saved), edit)
    fresh = build_model(config)
    before = values(fresh)
    message = refused(lambda: load_weights(fresh, locate(saved)))
    assert says in message and str(path) in message
    assert_same(values(fresh), before)


def test_a_grown_model_starts_from_what_is_there(saved: Path, config: Config) -> None:
    def other_parts(arrays: dict[str, np.ndarray]) -> None:
        for name in [name for name in arrays if name.startswith("text_decoder.")]:
            arrays.pop(name)
        arrays["sculptor.weight"] = np.zeros(1, np.float32)

    change(locate(saved), other_parts)
    fresh = build_model(config)
    before = values(fresh)
    assert load_parts(fresh, locate(saved)) == (["text_decoder"], ["sculptor"])
    found, stored = values(fresh), load_file(locate(saved) / "model.safetensors")
    assert_same({k: v for k, v in found.items() if k in stored}, {k: v for k, v in stored.items() if k in found})
    assert_same(
        {k: v for k, v in found.items() if k not in stored}, {k: v for k, v in before.items() if k not in stored}
    )


def test_a_shared_part_must_agree_in_every_tensor(saved: Path, config: Config) -> None:
    change(locate(saved), lambda arrays: arrays.pop("cross_encoder.cls"))
    assert "tensor cross_encoder.cls is not in" in refused(lambda: load_parts(build_model(config), locate(saved)))
    save_file({"sculptor.weight": np.zeros(1, np.float32)}, locate(saved) / "model.safetensors")
    assert "has no part of this model" in refused(lambda: load_parts(build_model(config), locate(saved)))


def test_the_wrong_shape_is_told_from_the_right_one(saved: Path) -> None:
    """An override that changes a width."""
    message = refused(lambda: load_model(saved, ["model.embed_dim=16"]))
    assert "[12" in message and "[16" in message and "model.safetensors" in message


@pytest.mark.parametrize("keep", [0, 5, 100, -10])
def test_a_truncated_file(saved: Path, config: Config, keep: int) -> None:
    path = unlisted(locate(saved)) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert f"cannot read {path}" in refused(lambda: load_weights(build_model(config), locate(saved)))


def test_missing_and_broken_parts(saved: Path) -> None:
    folder = unlisted(locate(saved))
    assert "absent.safetensors" in refused(lambda: read_tensors(folder / "absent.safetensors"))
    for damage in (lambda path: path.write_text("{"), lambda path: path.write_text(""), lambda path: path.unlink()):
        damage(folder / "state.json")
        assert f"cannot read {folder / 'state.json'}" in refused(lambda: read_state(folder))
    (folder / "config.yaml").unlink()
    with pytest.raises(ConfigError, match="config.yaml"):
        load_model(folder)


def test_a_vocabulary_that_is_missing(config: Config) -> None:
    model = replace(config.model, text=replace(config.model.text, vocab="absent.txt"))
    with pytest.raises(ConfigError, match="model.text.vocab=absent.txt"):
        build_model(replace(config, model=model))


def test_all_of_a_checkpoint_is_on_the_disk_before_it_takes_its_name(
    tmp_path: Path, config: Config, model: OPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own copy of the image tokenizer, too."""
    tokenizer = save_checkpoint(tmp_path / "tokenizer", 1, config, model)
    config = replace(config, data=replace(config.data, codes=str(tokenizer)))
    disk = Disk(monkeypatch)
    place = save_checkpoint(tmp_path / "checkpoints", 5, config, model, moments())
    assert (place / "tokenizer" / "model.safetensors").is_file()
    names = [name for name, *_ in disk.renamed]
    assert names.index("step-00000005") < names.index("latest")
    assert all(not own for _, own, _ in disk.renamed), disk.renamed


STEPS = ("mkdir", "config", "vocab", "model", "optimizer", "state", "rename", "point")


class Killed(BaseException):
    """As a signal: nothing in the code under test may catch it."""


def break_at(step: str, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets writing go wrong at a step, half of its bytes written."""

    def wrap(owner: object, name: str, when: Callable[..., bool]) -> None:
        real = getattr(owner, name)

        def broken(*args: object, **kwargs: object) -> object:
            if when(*args):
                if name == "write_text":
                    args[0].write_text(args[1][: len(args[1]) // 2])
                raise error
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, broken)

    match step:
        case "mkdir":
            wrap(Path, "mkdir", lambda path: ".writing" in path.name)
        case "vocab":
            wrap(checkpoint, "write_bytes", lambda path, _: path.name == "vocab.txt")
        case "model" | "optimizer":
            wrap(checkpoint, "write_tensors", lambda path, *_: path.name == f"{step}.safetensors")
        case "rename":
            wrap(Path, "rename", lambda *_: True)
        case "point":
            wrap(os, "replace", lambda _, path: path.name == "latest")
        case "config" | "state":
            wrap(checkpoint, "write_text", lambda path, _: path.stem == step)


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_leaves_what_was_there(
    saved: Path, config: Config, model: OPT, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = saved / "checkpoints"
    break_at(step, Killed(), monkeypatch)
    with pytest.raises(Killed):
        save_checkpoint(checkpoints, 50, config, model, moments(), keep=1)
    monkeypatch.undo()
    assert locate(saved).name == "step-00000041"
    assert_same(values(load_model(saved)[1]), values(model))
    for folder in checkpoints.glob("step-*"):
        assert {path.name for path in folder.iterdir()} == FILES, "what bears the name is whole"

    save_checkpoint(checkpoints, 50, config, model, moments(), keep=1)  # what the killed one left is no obstacle
    assert locate(saved).name == "step-00000050"
    assert sorted(os.listdir(checkpoints)) == ["latest", "step-00000050"]


@pytest.mark.parametrize("step", STEPS)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(
    saved: Path, config: Config, model: OPT, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_at(step, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), monkeypatch)
    message = refused(lambda: save_checkpoint(saved / "checkpoints", 50, config, model, moments(), keep=1))
    monkeypatch.undo()
    assert "step-00000050" in message and "No space left on device" in message
    assert locate(saved).name == "step-00000041"
    assert_same(values(load_model(saved)[1]), values(model))
    assert not [name for name in os.listdir(saved / "checkpoints") if name.startswith(".writing-step")]


def test_a_folder_that_may_not_be_written(tmp_path: Path, config: Config, model: OPT) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    assert "cannot write" in refused(lambda: save_checkpoint(tmp_path / "checkpoints", 1, config, model))


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


@pytest.mark.parametrize(("keep", "left"), [(0, [1, 2, 3, 10]), (1, [10]), (2, [3, 10]), (9, [1, 2, 3, 10])])
def test_the_newest_stay(tmp_path: Path, config: Config, model: OPT, keep: int, left: list[int]) -> None:
    for step in (1, 2, 3, 10):
        place = save_checkpoint(tmp_path / "checkpoints", step, config, model, keep=keep)
        assert locate(tmp_path) == place
    assert steps(tmp_path / "checkpoints") == left


def test_the_one_just_written_stays_even_where_later_steps_lie(tmp_path: Path, config: Config, model: OPT) -> None:
    """A shorter run into the folder of a longer one."""
    save_checkpoint(tmp_path / "checkpoints", 500, config, model, keep=1)
    save_checkpoint(tmp_path / "checkpoints", 20, config, model, keep=1)
    assert locate(tmp_path).name == "step-00000020"


def test_a_step_written_again_is_the_last_written(tmp_path: Path, config: Config, model: OPT) -> None:
    fresh = build_model(config)
    names = []
    for cell in (model, fresh, model):
        names.append(save_checkpoint(tmp_path / "checkpoints", 5, config, cell).name)
        assert_same(values(load_model(tmp_path)[1]), values(cell))
        assert sorted(os.listdir(tmp_path / "checkpoints")) == ["latest", names[-1]]
    assert names == ["step-00000005", "step-00000005.1", "step-00000005"]


def test_the_best_of_a_step_stays_when_the_step_is_written_again(tmp_path: Path, config: Config, model: OPT) -> None:
    checkpoints = tmp_path / "checkpoints"
    note_evaluation(save_checkpoint(checkpoints, 5, config, model), {"step": 5}, best=True)
    for _ in range(3):
        save_checkpoint(checkpoints, 5, config, model, keep=1)
    assert (checkpoints / "best").read_text() == "step-00000005\n" and (checkpoints / "step-00000005").is_dir()
    assert len(os.listdir(checkpoints)) == 4, "two checkpoints and their pointers"


def kill_at_call(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises instead of the n-th call, from now on, of what renames, replaces or removes."""
    calls = itertools.count()

    def wrap(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def counted(*args: object, **kwargs: object) -> object:
            if next(calls) == number:
                raise Killed
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    for owner, name in ((os, "replace"), (os, "rename"), (os, "unlink"), (os, "rmdir"), (shutil, "rmtree")):
        wrap(owner, name)


@pytest.mark.parametrize("step", [5, 6, 7])
@pytest.mark.parametrize("keep", [0, 1])
def test_a_kill_at_any_renaming_or_removal_leaves_a_latest_that_loads(
    tmp_path: Path, config: Config, model: OPT, step: int, keep: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 6 is the latest already, 5 the best, 7 is new."""
    old, new = values(model), build_model(config)
    for number in range(60):
        checkpoints = tmp_path / str(number) / "checkpoints"
        note_evaluation(save_checkpoint(checkpoints, 5, config, model, moments()), {"step": 5}, best=True)
        save_checkpoint(checkpoints, 6, config, model, moments())
        (checkpoints / "step-00000007").mkdir()  # an earlier kill left it before it became the latest
        kill_at_call(number, monkeypatch)
        try:
            save_checkpoint(checkpoints, step, config, new, moments(), keep=keep)
            finished = True
        except Killed:
            finished = False
        monkeypatch.undo()
        found = read_tensors(locate(checkpoints.parent) / "model.safetensors")
        assert_same(found, values(new) if found["scale.log_scale"] != old["scale.log_scale"] else old)
        assert (checkpoints / (checkpoints / "best").read_text().strip() / "model.safetensors").is_file()
        if finished:
            break
    assert finished and number > 4, "every call was broken once"
    assert_same(found, values(new))


def test_a_checkpoint_is_a_copy(tmp_path: Path, config: Config) -> None:
    """What is trained on after saving does not reach the file."""
    cell = build_model(config)
    before = values(cell)
    place = save_checkpoint(tmp_path / "checkpoints", 1, config, cell)
    randomise(cell)
    assert_same(read_tensors(place / "model.safetensors"), before)


def large_tensors(count: int = 24) -> dict[str, Parameter]:
    """Together 96 MB, one by one 4."""
    return {f"layer.{i}": Parameter(Tensor(np.full((1000, 1000), i, np.float32))) for i in range(count)}


def most_memory(action: Callable[[], object]) -> float:
    """Megabytes of Python's and NumPy's memory that an action takes at most."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def test_the_file_is_the_one_that_the_library_writes(tmp_path: Path) -> None:
    arrays = {
        "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a.编码": np.float32([1]),
        "step": np.array(7, np.int32),
        "none": np.zeros((0, 4), np.float32),
        "half": np.float16([0.5, 2]),
        "long": np.arange(3, dtype=np.int64),
        "flags": np.array([True, False, True]),
    }
    write_tensors(tmp_path / "ours", {name: Parameter(Tensor(value), name=name) for name, value in arrays.items()})
    save_file(arrays, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("half", [False, True])
def test_writing_takes_the_memory_of_one_tensor(tmp_path: Path, half: bool) -> None:
    path, tensors = tmp_path / "model.safetensors", large_tensors()
    assert most_memory(lambda: write_tensors(path, tensors, half)) < 10
    found = load_file(path)
    assert {name: (x.dtype, x.mean()) for name, x in found.items()} == {
        f"layer.{i}": (np.float16 if half else np.float32, i) for i in range(len(tensors))
    }


def test_reading_takes_the_memory_of_one_tensor(tmp_path: Path) -> None:
    path, tensors = tmp_path / "model.safetensors", large_tensors()
    write_tensors(path, tensors)
    fresh = {name: Parameter(Tensor(np.zeros((1000, 1000), np.float32))) for name in tensors}
    assert most_memory(lambda: set_parameters(fresh, read_tensors(path), path)) < 10
    assert [float(value.asnumpy().max()) for value in fresh.values()] == list(range(len(tensors)))


def test_half_precision_is_that_of_floats_alone(tmp_path: Path, config: Config) -> None:
    cell = nn.Cell()
    cell.insert_param_to_cell("weight", Parameter(Tensor(np.array([0.1, 2.0], np.float32)), name="weight"))
    cell.insert_param_to_cell("count", Parameter(Tensor(100_001, ms.int32), name="count"))
    for name, largest in (("most", 65504.0), ("more", -7e4)):
        cell.insert_param_to_cell(name, Parameter(Tensor(np.array([0.1, largest], np.float32)), name=name))
    write_model(tmp_path, config, cell, half=True)
    found = read_tensors(tmp_path / MODEL)
    assert found["weight"].dtype == np.float16 and found["weight"].tolist() == [np.float16(0.1), 2.0]
    assert found["count"].dtype == np.int32 and found["count"] == 100_001
    assert found["most"].dtype == np.float16 and found["most"][1] == 65504
    assert found["more"].dtype == np.float32 and found["more"].tolist() == [np.float32(0.1), -7e4], "not infinity"


@pytest.mark.parametrize("wrong", ["a", "b", "c"])
def test_whichever_tensor_has_another_shape_none_is_set(wrong: str) -> None:
    parameters = {name: Parameter(Tensor(np.zeros(2, np.float32)), name=name) for name in "abc"}
    arrays = {name: np.ones(3 if name == wrong else 2, np.float32) for name in "abc"}
    with pytest.raises(CheckpointError, match=rf"tensor {wrong} of file is \[3\], the model's is \[2\]"):
        set_parameters(parameters, arrays, Path("file"))
    assert not any(parameter.asnumpy().any() for parameter in parameters.values())
