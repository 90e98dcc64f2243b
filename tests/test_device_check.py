"""The check of a device: what is right passes, what is wrong is named, and no traceback stands for an answer."""

import subprocess
import sys

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from src import runtime
from src.files import ROOT
from src.models import precision
from src.models.layers import Attention, Gelu, LayerNorm, Linear
from src.runtime import GPU_LIBRARIES, RuntimeSetupError
from src.training import device_check
from src.training.device_check import CHECKS, report


def run(name: str) -> tuple[bool, str]:
    (check,) = (check for check in CHECKS if check.name == name)
    return check.run()


def said(capsys: pytest.CaptureFixture) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_cpu_is_right(capsys: pytest.CaptureFixture) -> None:
    report("CPU")
    versions, *lines = said(capsys)
    assert versions.startswith("CPU: Python ") and "MindSpore 2.10" in versions and "NumPy 1." in versions
    assert [line[:16].strip() for line in lines] == [check.name for check in CHECKS]
    assert all(line.endswith(": ok") for line in lines)


def test_a_wrong_operator_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(ops, "Gather", lambda: lambda x, rows, axis: x[: rows.shape[0]])
    with pytest.raises(RuntimeSetupError, match="^CPU: gather failed: "):
        report("CPU")
    failed = [line for line in said(capsys) if "FAILED" in line]
    assert len(failed) == 1 and failed[0].startswith("gather ") and "allowed 0e+00" in failed[0]


@pytest.mark.parametrize(
    ("name", "operator"),
    [("product", "MatMul"), ("half precision", "MatMul"), ("softmax", "Softmax"), ("convolution", "Conv2D")],
)
def test_zeros_and_nans_are_not_taken_for_results(monkeypatch: pytest.MonkeyPatch, name: str, operator: str) -> None:
    real = getattr(ops, operator)
    for wrong in (0.0, np.nan):
        monkeypatch.setattr(ops, operator, lambda *a, wrong=wrong, **k: lambda *x: real(*a, **k)(*x) * wrong)
        right, line = run(name)
        assert not right and line.endswith("FAILED"), line


def test_an_operator_that_the_device_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*tensors: Tensor) -> None:
        heading = "\n----\n- Kernel select failed:\n----\n"  # as MindSpore's
        raise TypeError(f"{heading}Select GPU operator[LayerNorm] fail!\nThe supported data types are …")

    monkeypatch.setattr(ops, "LayerNorm", lambda **options: missing)
    assert run("layer norm") == (False, "layer norm      FAILED: Select GPU operator[LayerNorm] fail!")


def test_a_wrong_gradient_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is right."""

    class Detached(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.gelu = Gelu()

        def construct(self, x):
            return ops.stop_gradient(self.gelu(x))

    assert run("training step")[0]
    monkeypatch.setattr(device_check, "Gelu", Detached)
    right, line = run("training step")
    assert not right and line.endswith("FAILED"), line


def test_a_wrong_update_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = device_check.AdamW
    monkeypatch.setattr(device_check, "AdamW", lambda parameters, config, rates: real(parameters, config, 4 * rates))
    right, line = run("training step")
    assert not right and line.endswith("FAILED"), line


def without_gpu(monkeypatch: pytest.MonkeyPatch, *missing: str, **environment: str) -> str:
    """The error of a machine that lacks these libraries."""
    monkeypatch.setattr(runtime, "_loads", lambda library: library not in missing)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    with pytest.raises(RuntimeSetupError) as error:
        report("GPU")
    message = str(error.value)
    assert "\n" not in message and message.startswith("runtime.device=GPU is not usable here: ")
    return message


def test_a_gpu_without_driver(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert "libcuda.so.1 is missing: install the NVIDIA driver." in without_gpu(monkeypatch, "libcuda.so.1")
    assert "libcublas.so.11, libcudart.so.11.0, " in said(capsys)[1]


def test_a_gpu_without_libraries(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    message = without_gpu(monkeypatch, *GPU_LIBRARIES[2:4])
    assert (
        "libcudart.so.11.0, libcudnn.so.8 missing: install requirements-gpu.txt, then source scripts/gpu_env.sh"
        in message
    )
    found, missing = said(capsys)[1:]
    assert "libcublas.so.11" in found and "libcudnn" not in found and missing[16:] in message
    assert "requirements-gpu.txt and the NVIDIA driver" in without_gpu(monkeypatch, *GPU_LIBRARIES)


def test_a_gpu_without_cuda_home(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "CUDA_HOME is not set: source scripts/gpu_env.sh" in without_gpu(monkeypatch)


@pytest.mark.parametrize("half", ["fp32", "fp16"])
def test_layers_for_a_gpu_run_no_operator_made_for_a_cpu(half: str) -> None:
    with precision.building(half, device="GPU"):
        layers = (Linear(2, 2), LayerNorm(2), Gelu(), Attention(2, 1))
        assert not any(layer.kernel for layer in layers) and layers[3].flash is None


def test_the_quick_check_is_one_line() -> None:
    command = [sys.executable, str(ROOT / "tools" / "check_device.py"), "CPU", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True)
    (line,) = done.stdout.splitlines()
    assert done.returncode == 0 and line.startswith("CPU: MindSpore 2.10") and "off by" in line


@pytest.mark.parametrize(("off", "refused"), [(0.0, False), (0.19, False), (0.21, True), (-0.21, True), (np.nan, True)])
def test_a_product_that_is_off_is_refused(monkeypatch: pytest.MonkeyPatch, off: float, refused: bool) -> None:
    real = ops.matmul
    one = np.zeros((64, 64), np.float32)
    one[63, 0] = off
    monkeypatch.setattr(ops, "matmul", lambda *factors: real(*factors) + Tensor(one))
    if not refused:
        line = runtime.check_product()
        assert line.startswith(f"CPU: MindSpore {mindspore.__version__}, a product of two matrices is off by ")
        assert float(line.split()[-1]) == pytest.approx(off, abs=0.01)
        return
    with pytest.raises(RuntimeSetupError, match=f"^CPU: a product of two matrices is off by {abs(off):.1e}: check the"):
        runtime.check_product()


def test_a_device_that_gives_no_product_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*factors: Tensor) -> Tensor:
        raise RuntimeError("\n----\n- Launch kernel failed:\n----\nNo driver is there.\nAt mindspore/ccsrc")

    monkeypatch.setattr(ops, "matmul", missing)
    with pytest.raises(RuntimeSetupError, match="^CPU: cannot multiply two matrices: No driver is there.$"):
        runtime.check_product()
