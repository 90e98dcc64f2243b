"""The moving average of the weights: its values, what a checkpoint keeps of it, and what --ema makes of it."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from conftest import MODEL_CONFIG, kill_after, save, tiny_dataset, unlisted
from mindspore import Parameter, Tensor, nn

import eval as evaluation
import export as exporting
import infer as inference
from src import runtime
from src.checkpoints.checkpoint import save_checkpoint
from src.checkpoints.files import EMA, MODEL, OPTIMIZER, OUTLIERS, CheckpointError, read_tensors
from src.checkpoints.places import locate
from src.config import Config, ConfigError, ObjectivesConfig, OptimizerConfig, TrainConfig, WeightsConfig
from src.export import export
from src.inference import features, library, load, outliers
from src.inference.loading import load_model
from src.models.build import build_model
from src.training.average import WeightAverage
from src.training.muon import build_optimizer
from src.training.schedule import learning_rates
from src.training.step import TrainStep
from src.training.trainer import Trainer
from tests.commands import command, make_home
from tests.oracles import MODES, Arrays, random, run_mode
from tools import extract_features

SHAPES = {"a.weight": (2, 3), "b.weight": (2, 3), "c.weight": (4, 2), "table": (2, 3), "a.bias": (3,), "b.bias": (3,)}


class Sums(nn.Cell):
    """loss = Σ over the parameters of Σ (w·x)²: every parameter moves in its own way."""

    names, fields = ("sums",), ("x",)

    def __init__(self) -> None:
        super().__init__()
        self.weights = ms.ParameterTuple([Parameter(Tensor(random(*shape)), name) for name, shape in SHAPES.items()])

    def construct(self, batch):
        loss = batch["x"].sum() * 0.0
        for weight in self.weights:
            loss = loss + ((weight * batch["x"][0]) ** 2).sum()
        return loss, loss


def make_step(kind: str, ema_decay: float, loss_scale: float | None = None) -> TrainStep:
    objectives = Sums()
    config = OptimizerConfig(name=kind, lr=0.05, muon_lr=0.05, warmup_steps=0)
    optimizer = build_optimizer(list(objectives.weights), config, learning_rates(config, 12))
    average = WeightAverage(optimizer, ema_decay) if ema_decay else None
    return TrainStep(objectives, optimizer, 1.0, loss_scale, max_bad_steps=9, average=average)


def batch(value: float) -> Arrays:
    return {"x": np.array([value], np.float32)}


def weights(step: TrainStep) -> Arrays:
    found = step.gradients.objectives.weights
    return {name: parameter.asnumpy().copy() for name, parameter in zip(SHAPES, found, strict=True)}


@pytest.mark.parametrize("mode", ["graph", "pynative"])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_average_is_that_of_a_loop_in_numpy(kind: str, mode: str) -> None:
    """Below the decay and at it, from the 8th update on; a step that is not finite does not count."""
    with run_mode(mode):
        step = make_step(kind, 0.5)
        expected = {name: array.astype(np.float64) for name, array in weights(step).items()}
        np.testing.assert_equal(step.average.arrays(), weights(step))
        good = 0
        for value in (1.0, 2.0, np.nan, 1.0, 0.5, 1.0, np.inf, 2.0, 1.0, 1.5, 1.0, 0.7):
            before = step.average.arrays()
            step(batch(value))
            found = step.average.arrays()
            if not np.isfinite(value):
                np.testing.assert_equal(found, before)
                continue
            good += 1
            decay = min(0.5, (1 + good) / (10 + good))
            for name, array in weights(step).items():
                expected[name] = decay * expected[name] + (1 - decay) * array
                np.testing.assert_allclose(found[name], expected[name], rtol=2e-6, atol=1e-7, err_msg=name)
                assert np.abs(found[name] - array).max() > 1e-3, "an average that follows at once tells nothing"
        assert step.result().bad_steps == 2 and good == 10


def test_an_overflow_of_the_loss_scale_does_not_count() -> None:
    step = make_step("adamw", 0.9, loss_scale=2.0**127)
    before = step.average.arrays()
    step(batch(10.0))
    assert step.result().skipped
    np.testing.assert_equal(step.average.arrays(), before)


def test_without_a_decay_there_is_nothing() -> None:
    step, averaged = make_step("adamw", 0.0), make_step("adamw", 0.9)
    held = [{parameter.name for parameter in each.graph.get_parameters()} for each in (step, averaged)]
    assert step.average is None and step.update.average is None
    assert held[1] - held[0] == {f"ema.{number}" for number in range(len(step.optimizer.packed_shapes))}
    assert step.state().keys() == averaged.state().keys()


def test_it_waits_for_nothing_and_leaves_the_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with run_mode("graph"):
        steps = [make_step("muon", decay) for decay in (0.0, 0.9)]
        for step in steps:
            step(batch(1.0))
        reads: list[object] = []
        with monkeypatch.context() as patch:
            for name in ("asnumpy", "item", "__float__", "__int__", "__bool__", "tolist"):
                real = getattr(Tensor, name)
                patch.setattr(Tensor, name, lambda *given, real=real: (reads.append(real), real(*given))[1])
            for step in steps:
                for value in (0.5, 2.0):
                    step(batch(value))
        assert not reads
        plain, averaged = (weights(step) for step in steps)
        np.testing.assert_equal(averaged, plain)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """One objective, so that a part of the network is not trained."""
    objectives = ObjectivesConfig(weights=WeightsConfig(contrastive=1.0))
    optimizer = OptimizerConfig(lr=1e-2, warmup_steps=0, freeze=("audio_encoder",))
    base = Config(model=MODEL_CONFIG, objectives=objectives, optimizer=optimizer)
    made = tiny_dataset(tmp_path_factory.mktemp("data"), config=base)
    return replace(made, data=replace(made.data, batch_size=4))


def with_run(config: Config, folder: Path, ema_decay: float = 0.3) -> Config:
    train = TrainConfig(output=str(folder), steps=4, log_every=1, save_every=1, keep_checkpoints=9, ema_decay=ema_decay)
    return replace(config, train=train)


@pytest.fixture(scope="module")
def finished(config: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Arrays]:
    """Four steps with an average, each with a checkpoint; and the weights that they began at."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with run_mode("graph"):
        trainer = Trainer(with_run(config, folder))
        began = {name: p.asnumpy().copy() for name, p in trainer.model.parameters_and_names()}
        trainer.run()
    return folder, began


def place(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def test_every_checkpoint_has_the_average_of_the_whole_network(finished: tuple[Path, Arrays]) -> None:
    """Averages where it is trained, the weights themselves elsewhere."""
    run, expected = finished
    for step in range(1, 5):
        trained, averages = (read_tensors(place(run, step) / file) for file in (MODEL, EMA))
        assert trained.keys() == averages.keys()
        decay = min(0.3, (1 + step) / (10 + step))
        expected = {name: decay * array + (1 - decay) * trained[name] for name, array in expected.items()}
        for name, array in averages.items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
    same = {name.split(".")[0] for name, array in averages.items() if np.array_equal(array, trained[name])}
    assert same >= {"text_decoder", "audio_encoder"} and not same & {"text_encoder", "image_encoder", "text_head"}


def test_a_resumed_run_has_the_average_of_the_uninterrupted_one(
    config: Config, finished: tuple[Path, Arrays], tmp_path: Path
) -> None:
    whole, _ = finished
    kill_after(whole, 2, tmp_path / "cut")
    with run_mode("graph"):
        Trainer(with_run(config, tmp_path / "cut"), resume=True).run()
    for file in (MODEL, EMA, OPTIMIZER):
        found, expected = (dict(read_tensors(place(run, 4) / file)) for run in (tmp_path / "cut", whole))
        np.testing.assert_equal(found, expected)


def test_a_resumed_run_may_leave_the_average_and_begin_another(
    config: Config, finished: tuple[Path, Arrays], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    kill_after(finished[0], 2, tmp_path / "run")
    capsys.readouterr()
    without = Trainer(with_run(config, tmp_path / "run", ema_decay=0.0), resume=True)
    (told,) = [line for line in capsys.readouterr().out.splitlines() if "average" in line]
    dropped = place(tmp_path / "run", 2) / EMA
    assert told == f"train.ema_decay=0: the average of the weights in {dropped} is not continued"
    assert without.step.average is None
    without.state["step"] = 3
    save(without)
    assert not (place(tmp_path / "run", 3) / EMA).exists()
    again = Trainer(with_run(config, tmp_path / "run", ema_decay=0.99), resume=True)
    (told,) = [line for line in capsys.readouterr().out.splitlines() if "average" in line]
    begins = place(tmp_path / "run", 3)
    assert told == f"train.ema_decay=0.99: the average of the weights begins at those of {begins}"
    trained = read_tensors(begins / MODEL)
    averages = again.step.average.arrays()
    assert len(averages) > 20
    np.testing.assert_equal(averages, {name: trained[name] for name in averages})


def damage(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "short":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        shutil.copyfile(path.with_name(OPTIMIZER), path)


@pytest.mark.parametrize(
    ("how", "message"), [("missing", "cannot read"), ("short", "cut short"), ("other", "another model wrote it")]
)
def test_a_damaged_average_is_refused(
    config: Config, finished: tuple[Path, Arrays], tmp_path: Path, how: str, message: str
) -> None:
    kill_after(finished[0], 2, tmp_path / "run")
    damage(unlisted(place(tmp_path / "run", 2)) / EMA, how)
    with pytest.raises(CheckpointError, match=message) as caught:
        Trainer(with_run(config, tmp_path / "run"), resume=True)
    assert "\n" not in str(caught.value) and str(place(tmp_path / "run", 2) / EMA) in str(caught.value)


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_impossible_decays_are_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"ema_decay: must be in \[0, 1\)"):
        TrainConfig(ema_decay=value)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beside make_home's run: averaged/ with other averages than weights, plain/ whose weights are these averages."""
    folder = make_home(tmp_path_factory.mktemp("ema"))
    config, model = load_model(folder / "run")
    averages = {name: array + 0.2 * random(*array.shape) for name, array in arrays_of(model).items()}
    config = replace(config, task="retrieval", train=replace(config.train, ema_decay=0.9))
    made = save_checkpoint(folder / "averaged" / "checkpoints", 3, config, build_model(config), average=averages)
    shutil.copytree(folder / "averaged", folder / "plain")
    place = unlisted(folder / "plain" / "checkpoints" / made.name)
    (place / EMA).replace(place / MODEL)
    return folder


def test_remarks_are_measured_for_the_plain_weights(home: Path, run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """What inputs are usual is no measure for the averages, whose vectors are others."""
    monkeypatch.setattr(library.outliers, "load", lambda folder: "measured")
    for ema, usual in ((True, None), (False, "measured")):
        assert load(home / "averaged", ["runtime.mode=pynative"], ema=ema).engine.outliers == usual


def arrays_of(model: nn.Cell) -> Arrays:
    return {name: parameter.asnumpy() for name, parameter in model.parameters_and_names()}


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Iterator[Callable]:
    """Calls one of the commands."""
    for module in (runtime, library):  # MindSpore refuses a device once it has run something
        monkeypatch.setattr(module, "setup", lambda wanted, _: ms.set_context(mode=MODES[wanted.mode]))

    def call(main: Callable[[], None], *arguments: str) -> tuple[int, str, str]:
        with command(main, home, monkeypatch, capsys) as typed:
            return typed(*arguments)

    yield call


def test_evaluation_measures_the_average(run: Callable, home: Path) -> None:
    """In a folder of its own; the metrics are those of a checkpoint whose weights are the averages."""
    found = {}
    for name, arguments in (("averaged", []), ("averaged", ["--ema"]), ("plain", [])):
        code, _, err = run(evaluation.main, "--checkpoint", name, "runtime.mode=pynative", *arguments)
        assert code == 0, err
        folder = home / name / ("eval-dev-ema" if arguments else "eval-dev")
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["weights"] == (EMA if arguments else MODEL)
        found[name, bool(arguments)] = metrics["retrieval"]
    assert found["averaged", True] == found["plain", False] != found["averaged", False]


def test_an_index_of_the_average_is_not_that_of_the_weights(run: Callable, home: Path) -> None:
    made = ("--gallery", "gallery", "--save-index")
    assert run(inference.main, "--checkpoint", "averaged", "--ema", *made, "averages.index")[0] == 0
    asked = ("--query", "一只猫", "--index", "averages.index", "eval.rerank.top_k=0")
    code, _, err = run(inference.main, "--checkpoint", "averaged", *asked)
    assert code == 2 and "averages.index: checkpoint " in err
    found = []
    for arguments in (("averaged", "--ema"), ("plain",)):
        code, out, err = run(inference.main, "--checkpoint", *arguments, *asked)
        assert code == 0, err
        found.append(out.splitlines()[:-1])  # the last line names the folder
    assert found[0] == found[1]


def test_an_export_holds_the_average_and_says_so(run: Callable, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its graph computes what a checkpoint computes whose weights are the averages."""
    whole = export.build_graphs
    monkeypatch.setattr(export, "build_graphs", lambda *given: {"text": whole(*given)["text_encoder"]})
    asked = ("--checkpoint", "averaged", "--ema", "--output", "exported", "--batch-size", "1")
    code, out, err = run(exporting.main, *asked)
    assert code == 0 and f"{EMA}: " in out, err
    assert json.loads((home / "exported" / "export.json").read_text())["weights"] == EMA
    assert (home / "exported" / "config.yaml").read_text().startswith(f"# exported from {EMA}: moving averages\n")
    given = Tensor(np.full((1, 7), 5, np.int32)), Tensor(np.ones((1, 7), np.int32))
    with run_mode("graph"):
        found = nn.GraphCell(ms.load(str(home / "exported" / "text.mindir")))(*given)[1].asnumpy()
    averaged, plain = (load_model(home / name)[1].text_encoder(*given).asnumpy() for name in ("plain", "averaged"))
    np.testing.assert_allclose(found.reshape(averaged.shape), averaged, atol=1e-4)
    assert np.abs(plain - averaged).max() > 0.1


def test_exported_weights_are_the_averages_and_have_none(run: Callable, home: Path) -> None:
    asked = ("--format", "WEIGHTS", "--output", str(home / "shipped"), "--ema")
    checkpoint = locate(home / "averaged")
    outliers.keep(checkpoint, checkpoint, outliers.Outliers({}))
    assert run(exporting.main, "--checkpoint", "averaged", *asked)[0] == 0
    assert not (home / "shipped" / OUTLIERS).exists(), "it was measured for the weights of the last step"
    (checkpoint / OUTLIERS).unlink()
    averages = read_tensors(checkpoint / EMA)
    for name, array in read_tensors(home / "shipped" / MODEL).items():
        np.testing.assert_array_equal(array, averages[name].astype(np.float16), err_msg=name)
    assert (home / "shipped" / "config.yaml").read_text().startswith(f"# exported from {EMA}: moving averages\n")
    assert load_model(home / "shipped")[0].train.ema_decay == 0.9
    code, _, err = run(evaluation.main, "--checkpoint", "shipped", "--ema")
    assert code == 2 and "--ema: shipped has no ema.safetensors" in err


def test_features_are_those_of_the_averages(run: Callable, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "setup", lambda runtime, _: ms.set_context(mode=MODES[runtime.mode]))
    (home / "manifest.jsonl").write_text('{"image": "gallery/a.png"}\n')
    found = []
    for arguments in (("averaged", "--ema"), ("plain",), ("averaged",)):
        output = home / f"features-{len(found)}"
        asked = ("--input", "manifest.jsonl", "--output", str(output), "--only", "image", "runtime.mode=pynative")
        code, _, err = run(extract_features.main, *asked, "--checkpoint", *arguments)
        assert code == 0, err
        (file,) = (output / "regions").rglob("*.npz")
        found.append(dict(np.load(file)))
    np.testing.assert_equal(found[0], found[1])
    assert any(not np.array_equal(array, found[2][name]) for name, array in found[0].items())
    code, _, err = run(extract_features.main, *asked, "--config", "none.yaml", "--ema")
    assert code == 2 and err.endswith("--ema goes with --checkpoint\n")


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (evaluation.main, []),
        (inference.main, ["--input", "gallery"]),
        (exporting.main, ["--output", "nothing"]),
        (extract_features.main, ["--input", "manifest.jsonl", "--output", "nothing"]),
    ],
)
def test_a_checkpoint_without_an_average_says_so(
    run: Callable, home: Path, main: Callable[[], None], arguments: list[str]
) -> None:
    (home / "manifest.jsonl").write_text('{"image": "gallery/a.png"}\n')
    code, _, err = run(main, "--checkpoint", "run", "--ema", *arguments)
    line = "error: --ema: run/checkpoints/step-00000003 has no ema.safetensors, which runs with train.ema_decay write"
    assert code == 2 and err == f"{line}: leave out --ema\n"
