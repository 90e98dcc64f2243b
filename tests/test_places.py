"""What a user names a checkpoint by, and what becomes of a damaged one: it is found before it is used."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import tiny_dataset

from src.checkpoints.checkpoint import note_evaluation, read_state, save_checkpoint
from src.checkpoints.files import CheckpointError
from src.checkpoints.manifest import read_manifest
from src.checkpoints.places import has_checkpoint, latest_before, locate, weights_suffix
from src.config import Config
from src.files import LFS_POINTER, digest
from src.models.build import build_model
from tests.oracles import tiny_model

STEPS = (5, 10, 15)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with three checkpoints, the second of which is the best one."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_dataset(folder / "data", config=Config(model=tiny_model()))
    model = build_model(config)
    for step in STEPS:
        state = {"position": 4 * step, "best": None, "evaluation_due": True}
        moments = {"step": model.scale.log_scale}
        place = save_checkpoint(folder / "run" / "checkpoints", step, config, model, moments, state, average={})
        note_evaluation(place, {"best": 0.5 if step >= 10 else None, "evaluation_due": False}, best=step == 10)
    return folder / "run"


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def step_of(path: Path | str) -> int:
    return int(locate(path).name.removeprefix("step-"))


def flip(path: Path, place: int = -1) -> None:
    """Changes one bit."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def refused(path: Path | str, **options: bool) -> str:
    with pytest.raises(CheckpointError) as error:
        locate(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_names_of_checkpoints(run: Path) -> None:
    assert step_of(run) == step_of(f"{run}@latest") == 15
    assert step_of(f"{run}@best") == 10
    assert step_of(f"{run}@step-00000005") == step_of(f"{run}@step-5") == step_of(f"{run}@5") == 5
    assert step_of(run / "checkpoints" / "step-00000005") == 5
    for wrong in ("bset", "7", ""):
        assert "it has latest, best, step-00000005, step-00000010, step-00000015" in refused(f"{run}@{wrong}")
    (run / "checkpoints" / "best").unlink()
    assert "has no checkpoint best: it has latest, step-00000005" in refused(f"{run}@best")
    odd = run.rename(run.with_name("run@best"))  # a folder's own name goes first
    assert step_of(odd) == 15 and step_of(f"{odd}@10") == 10


def test_results_of_an_earlier_checkpoint_have_their_own_name(run: Path) -> None:
    for name, at in (("", ""), ("@latest", ""), ("@best", "@step-00000010"), ("@5", "@step-00000005")):
        assert weights_suffix(locate(f"{run}{name}"), False) == at
    moved = run.rename(run.with_name("moved")) / "checkpoints" / "step-00000005"
    assert weights_suffix(moved, False) == "@step-00000005" and weights_suffix(moved, True) == "-ema@step-00000005"
    shutil.copytree(moved, run.with_name("bundle"))
    assert weights_suffix(run.with_name("bundle"), False) == ""


def test_the_manifest_says_what_was_written(run: Path) -> None:
    place = locate(run)
    found = read_manifest(place)
    assert (found["format"], found["step"], found["position"]) == (1, 15, 60)
    files = {path.name: path for path in place.iterdir()}
    assert found["files"].keys() == files.keys() - {"manifest.json", "evaluation.json"}
    for name, known in found["files"].items():
        assert known == {"size": files[name].stat().st_size, "sha256": digest(files[name])}
    assert read_state(place) == {"step": 15, "position": 60, "best": 0.5, "evaluation_due": False}


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "vocab.txt", "manifest.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "delete"])
def test_a_damaged_latest_is_named_and_the_one_before_is_used(
    run: Path, capsys: pytest.CaptureFixture[str], name: str, how: str
) -> None:
    path = run / "checkpoints" / "step-00000015" / name
    harm(path, how)
    if (name, how) == ("manifest.json", "delete"):
        assert step_of(run) == 15, "as a checkpoint of before there were manifests"
        return
    assert step_of(run) == 10
    said = capsys.readouterr().err
    if (name, how) == ("manifest.json", "flip"):
        path = path.parent / "model.safetensors"  # the bit belongs to its sha256
    assert f"note: {path} is {'missing' if how == 'delete' else 'damaged'}" in said and said.count("\n") == 1
    assert said.endswith("step-00000010 is used instead\n")
    assert str(path) in refused(f"{run}@15"), "who asks for it by its name is not given another"
    for step in (5, 10):
        harm(run / "checkpoints" / f"step-{step:08d}" / "vocab.txt", "cut")
    assert refused(run).startswith(str(path)) and refused(run).endswith("(and so are the 2 before it)")


def test_a_clone_without_the_weights_content(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "checkpoints" / "step-00000015" / "model.safetensors"
    path.write_bytes(LFS_POINTER + b"v1\noid sha256:0\nsize 9\n")
    assert refused(f"{run}@15").startswith(f"{path} is damaged: it is a Git LFS pointer, not the content: run git lfs")
    (path.parent / "manifest.json").unlink()
    path.unlink()
    assert refused(f"{run}@15") == f"{path} is missing"
    assert step_of(run) == 10 and f"{path} is missing" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_is_named(run: Path) -> None:
    path = run / "checkpoints" / "step-00000015" / "vocab.txt"
    path.unlink()
    path.mkdir()
    assert refused(f"{run}@15").startswith(f"{path} is damaged: ")
    path.rmdir()
    path.symlink_to(path)
    assert refused(f"{run}@15").startswith(f"{path} is damaged: Too many levels of symbolic links")


def test_an_evaluation_that_cannot_be_noted(run: Path) -> None:
    """One line; what was noted before stays, and so does the best one."""
    place = locate(run)
    (run / "checkpoints" / ".writing-best").mkdir()
    with pytest.raises(CheckpointError) as error:
        note_evaluation(place, {"best": 0.9, "evaluation_due": False}, best=True)
    assert str(error.value).startswith(f"cannot write {place}: ") and "\n" not in str(error.value)
    assert step_of(f"{run}@best") == 10 and step_of(run) == 15


def test_the_latest_before_a_step(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the names: the state of others is not read. Of those that another run left behind, none."""
    (run / "checkpoints" / "step-00000015" / "state.json").write_bytes(b"{")
    (run / "checkpoints" / "step-odd").mkdir()
    assert latest_before(run, 15).name == latest_before(run, 11).name == "step-00000010"
    assert not capsys.readouterr().err
    assert latest_before(run, 16).name == "step-00000010" and "state.json is damaged" in capsys.readouterr().err
    harm(run / "checkpoints" / "step-00000010" / "model.safetensors", "cut")
    assert latest_before(run, 15).name == "step-00000005"
    assert capsys.readouterr().err.endswith("step-00000005 is used instead\n")
    with pytest.raises(CheckpointError, match="has no checkpoint before step 5: name one by --checkpoint"):
        latest_before(run, 5)
    (run / "checkpoints" / "latest").write_text("step-00000005\n")
    assert latest_before(run, 99).name == "step-00000005"


def harm(path: Path, how: str) -> None:
    if how == "flip":
        flip(path, path.stat().st_size // 2)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-1] if path.name != "manifest.json" else path.read_bytes()[:-9])
    else:
        path.unlink()


@pytest.mark.parametrize("name", ["optimizer.safetensors", "state.json"])
def test_what_only_a_resumed_run_reads_is_no_matter_to_others(run: Path, name: str) -> None:
    flip(run / "checkpoints" / "step-00000015" / name)
    assert step_of(run) == 15
    assert locate(run, whole=True).name == "step-00000010"


def test_only_the_weights_that_are_used_are_compared(run: Path) -> None:
    place = run / "checkpoints" / "step-00000015"
    flip(place / "ema.safetensors")
    assert locate(run) == place and locate(run, ema=True).name == "step-00000010"
    assert locate(run, whole=True).name == "step-00000010"


def test_a_lost_pointer(run: Path) -> None:
    """The checkpoints are still there."""
    for content in (b"", b"step-0000\xff", b"nonsense\n"):
        (run / "checkpoints" / "latest").write_bytes(content)
        assert step_of(run) == 15
    (run / "checkpoints" / "latest").unlink()
    (run / "checkpoints" / "step-00000099").write_text("a file of a user's")
    assert step_of(run) == 15 and has_checkpoint(run)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step-00000099").write_text("a file of a user's")
    assert not has_checkpoint(run)


def test_later_steps_of_an_earlier_run_are_not_the_one_before(run: Path) -> None:
    (run / "checkpoints" / "latest").write_text("step-00000010\n")
    flip(run / "checkpoints" / "step-00000010" / "vocab.txt")
    assert step_of(run) == 5


def test_a_later_format_is_not_misread(run: Path) -> None:
    path = run / "checkpoints" / "step-00000015" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    assert "has format 2, this version reads 1" in refused(run / "checkpoints" / "step-00000015")
