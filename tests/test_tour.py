"""docs/tour.ipynb runs, and answers as the outputs that it is stored with say."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from src.files import ROOT
from tests.notebook import code_cells, outputs_of, run_cell
from tests.oracles import run_mode

TOUR = ROOT / "docs" / "tour.ipynb"
CELLS, MOST_BYTES = 10, 300_000
NUMBER = re.compile(r"-?\d+\.\d*")
ROUNDING = 0.02  # another processor's last shown digit


def text_of(output: dict[str, Any]) -> str:
    return output.get("text") or output["data"]["text/plain"]


def pixels(output: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(output["data"]["image/jpeg"]))), np.float32)


def test_it_is_small_and_names_no_machine() -> None:
    assert TOUR.stat().st_size < MOST_BYTES and len(code_cells(TOUR)) == CELLS
    notebook = json.loads(TOUR.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    shown = [text_of(output) for cell in code_cells(TOUR) for output in cell["outputs"]]
    assert not re.search(r"(^|[\s'\"(])/\w+", "\n".join(shown)), "an absolute path"
    assert sum("image/jpeg" in output.get("data", {}) for cell in code_cells(TOUR) for output in cell["outputs"]) > 4


@pytest.mark.e2e
def test_every_cell_answers_as_it_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TOUR.parent)  # as Jupyter
    names: dict[str, Any] = {}
    with run_mode("pynative"):
        for cell in code_cells(TOUR):
            found, stored = outputs_of(*run_cell(cell["source"], names)), cell["outputs"]
            assert [output["output_type"] for output in found] == [output["output_type"] for output in stored], cell[
                "id"
            ]
            for ours, theirs in zip(found, stored, strict=True):
                texts = text_of(ours), text_of(theirs)
                assert NUMBER.sub("", texts[0]).split() == NUMBER.sub("", texts[1]).split(), cell["id"]
                numbers = [list(map(float, NUMBER.findall(text))) for text in texts]
                assert numbers[0] == pytest.approx(numbers[1], abs=ROUNDING), cell["id"]
                if "image/jpeg" in theirs.get("data", {}):
                    assert np.abs(pixels(ours) - pixels(theirs)).mean() < 1, cell["id"]
    assert Path.cwd() == ROOT
