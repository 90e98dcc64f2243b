"""A user's own data by the README's commands: manifest, dataset, vocabulary, two steps, evaluation, an answer."""

import importlib
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from src.checkpoints.checkpoint import load_checkpoint_config
from src.checkpoints.places import locate
from tests.commands import command, write_wave
from tests.corpora import draw, read
from tests.test_readme import commands
from tools import check_data

ROOT = Path(__file__).resolve().parents[1]
OWN = re.compile(r"data/mine|runs/mine")  # commands of the README that are about the user's data
SMALL = {  # what is added to them
    "train.py": ("train.steps=2", "train.log_every=1", "data.batch_size=4", "runtime.mode=pynative"),
    "eval.py": ("eval.batch_size=4", "runtime.mode=pynative"),
}
ANIMALS = "猫狗鱼鸟马牛羊鸡"
SECONDS = (0.5, 5.0)  # of the recordings: the second is longer than the configuration reads


def make_corpus(folder: Path) -> None:
    """What a user has: manifest.jsonl and FOLDER with images and some recordings."""
    rows = []
    rng = np.random.default_rng(0)
    for split, numbers in (("train", range(8)), ("dev", range(4)), ("test", range(4))):
        for number in numbers:
            name = f"{split}{number}"
            draw(folder / "FOLDER" / f"{name}.png")
            row = {"id": name, "image": f"{name}.png", "captions": [f"一只{ANIMALS[number]}"], "split": split}
            if number < len(SECONDS):
                write_wave(folder / "FOLDER" / f"{name}.wav", rng, SECONDS[number])
                row["audio"] = [f"{name}.wav"]
            rows.append(json.dumps(row, ensure_ascii=False))
    (folder / "manifest.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


@pytest.mark.e2e
def test_from_a_manifest_to_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_corpus(tmp_path)
    (tmp_path / "config").symlink_to(ROOT / "config")
    own = [shlex.split(line) for line in commands("README.md") if OWN.search(line)]
    scripts = [words[1] for words in own]
    assert scripts == [
        *("tools/prepare_data.py", "tools/check_data.py", "tools/build_vocab.py", "train.py", "eval.py", "infer.py")
    ]
    said = {}
    for script, words in zip(scripts, own, strict=True):
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        if hasattr(module, "setup"):  # MindSpore refuses a device once it has run something
            monkeypatch.setattr(module, "setup", lambda *_: (0, 1))
        with command(module.main, tmp_path, monkeypatch, capsys) as call:
            code, said[script], errors = call(*words[2:], *SMALL.get(script, ()))
            assert code == 0, (script, errors)

    train = read(tmp_path / "data" / "mine", "train")
    frames = [len(train[f"train{number}"].audio[0]) for number in range(len(SECONDS))]
    assert frames == [25, 160], "20 ms a frame; the configuration reads 160"
    assert set(ANIMALS) < set((tmp_path / "vocab.txt").read_text(encoding="utf-8").split())

    folder = tmp_path / "runs" / "mine"
    config = load_checkpoint_config(locate(folder))
    assert config.task == "retrieval" and Path(config.model.text.vocab).read_bytes() == Path("vocab.txt").read_bytes()
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [line["loss/contrastive"] for line in steps if "loss/contrastive" in line]
    assert len(losses) == 2 and np.isfinite(losses).all()
    metrics = json.loads((folder / "eval-test" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["retrieval"]["text_to_image"]["gallery"] == 4
    assert {"text_to_image", "audio_to_image", "audio_to_text"} < metrics["retrieval"].keys()
    answer = json.loads((folder / "query" / "query.json").read_text(encoding="utf-8"))
    assert len(answer["image"]) == 5 and answer["image"][0]["file"].startswith("FOLDER/")
    assert all(hit["file"] in said["infer.py"] for hit in answer["image"])
    assert len(answer["audio"]) == 5

    with command(check_data.main, tmp_path, monkeypatch, capsys) as call:
        code, shown, _ = call("data/mine", "model.text.vocab=vocab.txt", "--config", ROOT / "config/model/demo.yaml")
    assert code == 0 and "split 'train': tokens of the texts: half of them have up to 5, 99 % up to 5" in shown
    assert "split 'train': frames of the audio clips: half of them have up to 160, 99 % up to 160" in shown
    assert "split 'train': 50.0% of the audio clips are cut" in shown and "[UNK]" not in shown.replace("no [UNK]", "")
