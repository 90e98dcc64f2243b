"""Set-up: what cannot work is refused in one line with its mend."""

import importlib.metadata
import random
import sys
from collections.abc import Iterator

import mindspore as ms
import numpy as np
import pytest

from src import runtime
from src.config import RuntimeConfig
from src.runtime import RuntimeSetupError, check_environment, is_cpu, setup


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Other tests go on in the mode and on the device that they began with."""
    mode = ms.get_context("mode")
    yield
    ms.set_context(mode=mode)
    ms.set_device("CPU")


def refused(config: RuntimeConfig) -> str:
    with pytest.raises(RuntimeSetupError) as error:
        setup(config, seed=1)
    message = str(error.value)
    assert "\n" not in message and len(message) < 300
    return message


@pytest.mark.parametrize("version", ["2.0.0", "2.2.1", "3.0.0rc1"])
def test_numpy_2_is_refused_with_the_mend(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(runtime.importlib.metadata, "version", lambda name: version if name == "numpy" else real(name))
    message = refused(RuntimeConfig())
    assert version in message and "pip install 'numpy>=1.26,<2'" in message


@pytest.mark.parametrize("python", [(3, 9, 18), (3, 13, 0), (4, 0, 0)])
def test_python_out_of_range_is_refused(monkeypatch: pytest.MonkeyPatch, python: tuple[int, int, int]) -> None:
    monkeypatch.setattr(sys, "version_info", python)
    message = refused(RuntimeConfig())
    assert f"{python[0]}.{python[1]}" in message and "3.10, 3.11 or 3.12" in message


@pytest.mark.parametrize("python", [(3, 10, 0), (3, 11, 9), (3, 12, 11)])
def test_python_in_range_passes(monkeypatch: pytest.MonkeyPatch, python: tuple[int, int, int]) -> None:
    monkeypatch.setattr(sys, "version_info", python)
    check_environment()


@pytest.mark.parametrize("device", ["Ascend", "GPU"])
def test_an_absent_device_is_refused(device: str) -> None:
    message = refused(RuntimeConfig(device=device))
    assert f"runtime.device={device} is not usable here" in message
    assert is_cpu(), "the refusal leaves the device that there is"


def test_distributed_without_a_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MS_WORKER_NUM", "RANK_TABLE_FILE"):
        monkeypatch.delenv(name, raising=False)
    message = refused(RuntimeConfig(distributed=True))
    assert "msrun" in message and "scripts/run_distributed_ascend.sh" in message


@pytest.mark.parametrize("variable", ["MS_WORKER_NUM", "RANK_TABLE_FILE"])
def test_either_kind_of_launcher_is_known(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """msrun sets the one, Ascend's rank table is named by the other."""

    def join() -> None:
        raise RuntimeError("asked to join the others")

    for name in ("MS_WORKER_NUM", "RANK_TABLE_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "2")
    monkeypatch.setattr("mindspore.communication.init", join)
    with pytest.raises(RuntimeError, match="asked to join"):
        setup(RuntimeConfig(distributed=True), seed=1)


@pytest.mark.parametrize(("mode", "expected"), [("graph", ms.GRAPH_MODE), ("pynative", ms.PYNATIVE_MODE)])
def test_set_up_on_a_cpu(mode: str, expected: int) -> None:
    assert setup(RuntimeConfig(mode=mode), seed=1) == (0, 1)
    assert ms.get_context("mode") == expected and is_cpu()


@pytest.mark.parametrize(("device", "calls"), [("CPU", ["memory", "blocking"]), ("GPU", [])])
def test_what_a_cpu_needs_is_done_on_a_cpu_alone(
    monkeypatch: pytest.MonkeyPatch, device: str, calls: list[str]
) -> None:
    """A GPU that waited for every operator would idle."""
    found: list[str] = []
    monkeypatch.setattr(runtime, "keep_freed_memory", lambda: found.append("memory"))
    monkeypatch.setattr(ms.runtime, "launch_blocking", lambda: found.append("blocking"))
    monkeypatch.setattr(runtime, "_choose_device", lambda name: None)
    monkeypatch.setattr(runtime, "_check_card", lambda: None)
    monkeypatch.setattr(runtime, "device", lambda: device)
    setup(RuntimeConfig(device=device), seed=1)
    assert found == calls


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 7])
def test_the_seed_fixes_every_generator(seed: int) -> None:
    def draws() -> list[float]:
        setup(RuntimeConfig(), seed)
        weights = ms.common.initializer.initializer("normal", (2, 2)).init_data().asnumpy()
        return [random.random(), np.random.rand(), *weights.ravel().tolist()]

    assert draws() == draws()


def test_kernel_fusion_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeSetupError, match=r"runtime.graph_kernel=true needs g\+\+"):
        runtime.setup(RuntimeConfig(graph_kernel=True), seed=1)


def test_a_cpu_says_what_fp16_is_for_and_refuses_bf16(capsys: pytest.CaptureFixture) -> None:
    setup(RuntimeConfig(), seed=1)
    assert not capsys.readouterr().out
    setup(RuntimeConfig(precision="fp16"), seed=1)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "slower than fp32 on a CPU" in said
    assert "no bf16 products for a CPU" in refused(RuntimeConfig(precision="bf16"))
