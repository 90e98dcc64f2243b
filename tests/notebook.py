"""Runs a notebook's code cells without Jupyter, as it would: the value of a last expression is shown.

python -m tests.notebook docs/tour.ipynb      runs it and writes the outputs into it
"""

import ast
import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image

QUALITY = 85  # of JPEG


def run_cell(source: str, names: dict[str, Any]) -> tuple[str, Any]:
    """What a cell prints, and the value of its last expression or None."""
    tree, value = ast.parse(source), None
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, "cell", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    return printed.getvalue(), value


def outputs_of(printed: str, value: Any) -> list[dict[str, Any]]:
    """As a notebook stores them; an image is a JPEG."""
    found: list[dict[str, Any]] = []
    if printed:
        found.append({"output_type": "stream", "name": "stdout", "text": printed})
    if isinstance(value, Image.Image):
        buffer = io.BytesIO()
        value.save(buffer, "JPEG", quality=QUALITY)
        shown = {"image/jpeg": base64.b64encode(buffer.getvalue()).decode(), "text/plain": f"{value.size} pixels"}
        found.append({"output_type": "display_data", "data": shown, "metadata": {}})
    elif value is not None:
        found.append({"output_type": "display_data", "data": {"text/plain": repr(value)}, "metadata": {}})
    return found


def code_cells(path: Path) -> list[dict[str, Any]]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def main(path: Path) -> None:
    notebook, names = json.loads(path.read_text(encoding="utf-8")), {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = outputs_of(*run_cell(cell["source"], names))
    path.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
