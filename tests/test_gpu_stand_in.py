"""The GPU path on a GPU that computes nothing (tests/gpu_stand_in.py): what can be seen without one."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from src.files import ROOT
from tests.gpu_stand_in import BACKEND, make

MISSING = [name for name in ("gcc", "nm") if not shutil.which(name)] + ([] if BACKEND.exists() else [BACKEND.name])
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"the stand-in for a GPU needs {', '.join(MISSING)}")
WHOLE = pytest.mark.skipif("GPU_STAND_IN" not in os.environ, reason="several minutes: GPU_STAND_IN=1 runs it")
DROPOUT = ",".join(f"model.{part}.dropout=0.1" for part in ("text", "image", "audio", "cross", "text_decoder"))
WAVES = "model.audio.input=wav2vec2,model.audio.max_frames=100,model.audio.norm=post"
STEPS = (
    *("image_tokenizer", "vqa", "caption", "retrieval", "text_to_image", "speech_to_text"),
    f"speech_to_text:{WAVES}",
    f"pretrain:{DROPOUT}",
)

# Products in float32 of a step in fp16, gradients included: of the contrastive loss eight directions with two gradients
# each, and where there is matching, three similarities that hard negatives are chosen by; of three embedding heads one
# product with its two gradients; of masked frames their cosines and one gradient; distances to the codebook; of vqa
# embeddings and their terms, and where text and audio point.
FULL = {
    "image_tokenizer": {"MatMul": 1},
    "vqa": {"MatMul": 3 * 2, "BatchMatMul": 2},
    "retrieval": {"MatMul": 8 * 3 + 3 * 3},
    f"pretrain:{DROPOUT}": {"MatMul": 8 * 3 + 3 + 3 * 3, "BatchMatMul": 2},
}
PRODUCT = re.compile(r" = (?:PrimFunc_)?(\w*MatMul|Conv2D\w*)\(")
CONVOLUTIONS = {"Conv2D": 8, "Conv2DBackpropInput": 7, "Conv2DBackpropFilter": 8}  # of wav2vec 2.0


def run(folder: Path, *command: str, capability: int = 9, cards: int = 1) -> subprocess.CompletedProcess:
    environment = {**os.environ, **make(folder / "gpu", capability, cards)}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


def products(graph: Path) -> dict[str, Counter]:
    """How often each product of losses and gradients stands in a graph with chosen kernels, by its operands' type."""
    found: dict[str, Counter] = {"Float16": Counter(), "Float32": Counter()}
    lines = graph.read_text().splitlines()
    for at, line in enumerate(lines):
        product = PRODUCT.search(line)
        scope = product and next(line for line in lines[at:] if "# Fullname with scope" in line)
        if product and "(Default/update-" not in scope:
            # three lines of types: of the graph, of the kernel, of the objects
            (kind,) = set(re.findall(r"<(\w+?)xDefaultFormat", lines[at + 2])) - {"Bool", "Int64"}
            found[kind][product[1]] += 1
    return found


def error_of(result: subprocess.CompletedProcess) -> str:
    """The one line that a command ended with."""
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    return line


def test_nothing_that_it_computes_is_right(tmp_path: Path) -> None:
    """Every check sees it, and every operator has a kernel."""
    result = run(tmp_path, "tools/check_device.py", "GPU")
    assert error_of(result).startswith(
        "error: GPU: product, half precision, layer norm, softmax, gather, convolution, "
    )
    _, libraries, *lines = result.stdout.splitlines()
    assert "libcuda.so.1, libcublas.so.11" in libraries and libraries.endswith(" found")
    assert all(line.endswith("FAILED") and "off by" in line for line in lines), lines


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ({"cards": 0}, "is not usable here: no card (The cudaGetDeviceCount failed, ret[100]"),
        ({"capability": 10}, "its compute capability is 10.0, and CUDA 11.8 has code for 6.0 to 9.0"),
    ],
    ids=["none", "too new"],
)
def test_cards_that_cannot_be_used(tmp_path: Path, machine: dict[str, int], words: str) -> None:
    result = run(tmp_path, "tools/check_device.py", "GPU", "--quick", **machine)
    assert words in error_of(result) and not result.stdout


def test_bf16_is_refused_before_training(tmp_path: Path) -> None:
    result = run(tmp_path, "-m", "tests.gpu_step", "bf16", "caption")
    assert "RuntimeSetupError" in result.stderr and "runtime.precision=bf16: MindSpore has no bf16" in result.stderr


@WHOLE
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_operator_of_a_training_step_has_a_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """And the kernels multiply in the type that is asked for."""
    graphs = tmp_path / "graphs"
    monkeypatch.setenv("MS_DEV_SAVE_GRAPHS", "2")
    monkeypatch.setenv("MS_DEV_SAVE_GRAPHS_PATH", str(graphs))
    monkeypatch.setenv("MS_DEV_DUMP_IR_PASSES", "graph_build")
    steps = [*STEPS, *(["self_critical"] if precision == "fp32" else [])]  # fp16 is refused
    result = run(tmp_path, "-m", "tests.gpu_step", precision, *steps)
    assert result.stdout.splitlines() == [f"{step}: ok" for step in steps], result.stderr[-2000:]
    for number, step in enumerate(steps):
        (graph,) = graphs.glob(f"graph_build_{number}_*.ir")
        found = products(graph)
        half = found["Float16"]
        if precision == "fp32":
            assert not half and found["Float32"].total() > 50, step
        else:
            assert found["Float32"] == FULL.get(step, {}), step
            assert half.total() > 50 and (WAVES not in step or half | CONVOLUTIONS == half), step


@WHOLE
@pytest.mark.parametrize(
    "asked",
    [("--input", "assets/gallery/01.png"), ("--generate", "红底，左边一只猫", "--samples", "2")],
    ids=lambda a: a[0],
)
def test_every_operator_of_inference_has_a_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, ...]
) -> None:
    monkeypatch.setenv("MS_DISABLE_KERNEL_BACKOFF", "1")
    result = run(tmp_path, "infer.py", *asked, "--output", str(tmp_path / "answers"), "runtime.device=GPU")
    assert result.returncode == 0, result.stderr[-2000:]
