"""Recorded speech in a folder: prepared, trained to be transcribed, and measured, by the commands of the page."""

import importlib
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from src.files import ROOT
from src.metrics.errors import edit_distance
from tests.commands import command, write_wave

TEXTS = ("一只猫", "两只狗", "A Red Fish", "三只鸟在左边")
COUNTS = {"train": 8, "dev": 4, "test": 4}
SMALL = {  # what is added to the commands
    "train.py": ("train.steps=3", "train.log_every=1", "data.batch_size=4", "runtime.mode=pynative"),
    "eval.py": ("eval.batch_size=4", "runtime.mode=pynative"),
}


def page_commands() -> list[list[str]]:
    """The commands of the page's section on real speech, in order."""
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    section = re.search(r"^#+ Real speech$(.*?)(?=^#)", text, re.DOTALL | re.MULTILINE)[1]
    blocks = re.findall(r"^```bash\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    return [shlex.split(line, comments=True) for line in "".join(blocks).replace("\\\n", " ").splitlines() if line]


@pytest.mark.e2e
def test_from_recordings_to_error_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        rows = []
        for number in range(count):
            name = f"{split}/{number}.wav"
            (tmp_path / "recordings" / split).mkdir(parents=True, exist_ok=True)
            write_wave(tmp_path / "recordings" / name, rng, 0.2 + 0.01 * number)
            rows.append(f"{name}\t{TEXTS[number % len(TEXTS)]}\n")
        (tmp_path / f"{split}.tsv").write_text("".join(rows), encoding="utf-8")
    (tmp_path / "config").symlink_to(ROOT / "config")
    said = page_commands()
    assert [words[1] for words in said] == ["tools/prepare_data.py", "tools/build_vocab.py", "train.py", "eval.py"]
    for _, script, *words in said:
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        if hasattr(module, "setup"):  # MindSpore refuses a device once it has run something
            monkeypatch.setattr(module, "setup", lambda *_: (0, 1))
        with command(module.main, tmp_path, monkeypatch, capsys) as call:
            code, _, errors = call(*words, *SMALL.get(script, ()))
            assert code == 0, (script, errors)
    folder = tmp_path / "runs" / "speech"
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [line["loss/denoise_text"] for line in steps if "loss/denoise_text" in line]
    assert len(losses) == 3 and losses[-1] < losses[0]
    results = folder / "eval-test"
    metrics = json.loads((results / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["transcription"]["clips"] == 4 and "transcription_with_image" not in metrics
    heard = json.loads((results / "transcripts.json").read_text(encoding="utf-8"))
    assert [entry["id"] for entry in heard] == [f"test/{number}.wav" for number in range(4)]
    pairs = [(plain(entry["transcript"]), plain(text)) for entry, text in zip(heard, TEXTS, strict=True)]
    rate = sum(edit_distance(*pair) for pair in pairs) / sum(len(text) for _, text in pairs)
    assert metrics["transcription"]["character_error_rate"] == pytest.approx(rate, abs=1e-5)


def plain(text: str) -> str:
    """Without case, spaces and punctuation."""
    return re.sub(r"\W", "", text.lower())
