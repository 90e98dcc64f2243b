"""The evaluation command as a user calls it: on a dataset, and with what can go wrong; how re-ranking is tuned."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import eval as evaluation
from src.config import load_config
from src.inference.rerank import TERMS
from tests.commands import Run, command, make_home
from tools import tune_reranking


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("eval"))


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Iterator[Run]:
    with command(evaluation.main, home, monkeypatch, capsys) as call:
        yield call


@pytest.fixture
def tune(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Iterator[Run]:
    with command(tune_reranking.main, home, monkeypatch, capsys) as call:
        yield call


def test_dataset(run: Run, home: Path) -> None:
    code, out, _ = run("--checkpoint", "run", "eval.caption.max_items=4", "eval.transcript.max_items=4")
    assert code == 0 and "text → image" in out and "transcripts of speech" in out
    metrics = json.loads((home / "run" / "eval-dev" / "metrics.json").read_text())
    assert metrics["split"] == "dev" and metrics["caption"]["images"] <= 4
    assert Path(metrics["checkpoint"]).parent == Path("run/checkpoints")
    assert "% of the texts are cut at model.text.max_len=" in out and "[UNK]" not in out


def test_results_take_the_place_of_no_others(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for each split, and beside it one for another task, another dataset, and for files of the task's own."""
    monkeypatch.chdir(home)
    own = load_config(None, ["data.path=corpora/mine"])
    for settings, split, name in (
        ([], "", "eval-test"),
        (["eval.split=train"], "dev", "eval-dev"),
        ([f"data.path={home}/corpora/mine/"], "", "eval-test"),
        (["task=retrieval"], "", "eval-test-retrieval"),
        (["data.path=other/yours"], "dev", "eval-dev-yours"),
        (["task=retrieval", "data.eval_path=yours"], "dev", "eval-dev-retrieval-yours"),
        (["task=zero_shot", "eval.zero_shot.path=x", "data.path=yours"], "", "eval-zero_shot"),
    ):
        config = load_config(None, ["data.path=corpora/mine", *settings])
        assert evaluation.results_name(own, config, split) == name


def test_weights_are_chosen_on_another_split(tune: Run, home: Path) -> None:
    chosen = ("eval.split=train", "eval.retrieval.gallery_size=5", "--output", "tuned")
    code, out, _ = tune("--checkpoint", "run", *chosen)
    assert code == 0
    assert "best" in out and "likelihood only" in out and "eval.rerank.likelihood=" in out
    tried = json.loads((home / "tuned" / "reranking.json").read_text())["tried"]
    best = yaml.safe_load((home / "tuned" / "reranking.yaml").read_text())["eval"]["rerank"]
    (found,) = [row for row in tried if all(row[name] == best[name] for name in TERMS)]
    assert found["R@1"] == max(row["R@1"] for row in tried) and len(tried) == 5**3 - 4**3
    for arguments, message in (
        (["--output", "/proc/self"], "/proc/self: "),
        (["--split", "dev"], "--split dev is eval.split, which is reported"),
        (["eval.split=train", "eval.rerank.top_k=0"], "eval.rerank.top_k=0 re-ranks nothing"),
        (["task=caption", "objectives.weights.denoise_text=1"], "task=caption is not judged by retrieval"),
    ):
        code, _, err = tune("--checkpoint", "run", *arguments)
        assert code == 2 and message in err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "nowhere"], "no checkpoint in nowhere"),
        (["--checkpoint", "run", "--split", "tset"], "has no split 'tset': it has train, dev"),
        (["--checkpoint", "run", "eval.batchsize=3"], "did you mean eval.batch_size?"),
        (["--checkpoint", "run", "--config", "none.yaml"], "cannot read config none.yaml"),
        (["--checkpoint", "run", "--output", "gallery/a.png/x"], "gallery/a.png/x: Not a directory"),
    ],
)
def test_mistakes_are_one_line(run: Run, arguments: list[str], message: str) -> None:
    code, _, err = run(*arguments)
    assert code == 2 and message in err.strip().splitlines()[-1]
    assert "Traceback" not in err


def test_help_shows_examples(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0 and "eval.py --checkpoint runs/demo/retrieval eval.rerank.top_k=0" in out
