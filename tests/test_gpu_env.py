"""scripts/gpu_env.sh, with packages of empty libraries and a Python that says where they are."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from mindspore.run_check._check_version import GPUEnvChecker

from src.files import ROOT
from src.runtime import DRIVER, GPU_LIBRARIES

SCRIPT = ROOT / "scripts" / "gpu_env.sh"
PACKAGES = dict(re.findall(r"(lib\w+\.so\.[\d.]+)=(\w+)", SCRIPT.read_text(encoding="utf-8")))
SHOW = 'echo "${CUDA_HOME:-}|${LD_LIBRARY_PATH:-}"'


class Machine:
    """A folder of packages, a Python that has them, and a cache."""

    def __init__(self, folder: Path) -> None:
        self.site, self.cache, self.python = folder / "site packages", folder / "cache", folder / "python"
        for library, package in PACKAGES.items():
            path = self.site / "nvidia" / package / "lib" / library
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        self.python.write_text(f'#!/bin/sh\necho "{self.site}"\n')
        self.python.chmod(0o755)

    def source(self, then: str = SHOW, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", "-uc", f'source "{SCRIPT}" || exit; {then}'],
            env={
                "PATH": os.environ["PATH"],
                "PYTHON": str(self.python),
                "XDG_CACHE_HOME": str(self.cache),
                **environment,
            },
            capture_output=True,
            text=True,
        )

    def found(self, **environment: str) -> tuple[str, str]:
        """CUDA_HOME and LD_LIBRARY_PATH behind it, and that it printed nothing."""
        result = self.source(**environment)
        assert result.returncode == 0 and not result.stderr, result.stderr
        home, libraries = result.stdout.strip().split("|")
        return home, libraries


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def refused(result: subprocess.CompletedProcess, *words: str) -> None:
    assert result.returncode == 1 and not result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith("gpu_env.sh: ") and all(word in line for word in words), line


def test_the_lists_agree() -> None:
    assert {DRIVER, *PACKAGES} == set(GPU_LIBRARIES)
    pins = (ROOT / "requirements-gpu.txt").read_text(encoding="utf-8")
    assert set(re.findall(r"^nvidia-(.+)-cu11==", pins, re.MULTILINE)) == {
        p.replace("_", "-") for p in PACKAGES.values()
    }
    assert pins.startswith("-r requirements.txt\n"), "MindSpore's own pin"


def test_the_packages_are_found(machine: Machine) -> None:
    home, libraries = machine.found()
    assert libraries == f"{home}/lib64"
    for library, package in PACKAGES.items():
        assert Path(libraries, library).samefile(machine.site / "nvidia" / package / "lib" / library)
    answer = subprocess.run([f"{home}/bin/nvcc", "--version"], capture_output=True, text=True).stdout
    assert "Cuda compilation tools, release 11.6," in answer  # what MindSpore's loader looks for


def test_mindspore_reads_versions_that_it_accepts(machine: Machine) -> None:
    home, _ = machine.found()
    checker = GPUEnvChecker("/bin/sh")
    checker.cuda_lib_path = checker.cudnn_lib_path = [home]
    assert checker.get_cudart_version().startswith("11.6.") and checker._check_version()
    assert int(checker._get_cudnn_version()) == 896


def test_again_changes_nothing(machine: Machine) -> None:
    home, libraries = machine.found(LD_LIBRARY_PATH="/mine")
    assert libraries == f"{home}/lib64:/mine"
    made = sorted((path, path.lstat().st_mtime_ns) for path in Path(home).rglob("*"))
    assert machine.found(CUDA_HOME=home, LD_LIBRARY_PATH=libraries) == (home, libraries)
    assert sorted((path, path.lstat().st_mtime_ns) for path in Path(home).rglob("*")) == made


def test_it_works_under_strict_settings(machine: Machine) -> None:
    result = machine.source(f'set -euo pipefail; source "{SCRIPT}"; {SHOW}')
    assert result.returncode == 0 and f"{machine.cache}/opt/" in result.stdout, result.stderr


def test_what_is_missing_is_named(machine: Machine) -> None:
    (machine.site / "nvidia/cudnn/lib/libcudnn.so.8").unlink()
    refused(
        machine.source(), "libcudnn.so.8 missing", f"{machine.python} -m pip install -r {ROOT}/requirements-gpu.txt"
    )
    assert not machine.cache.exists()


def test_packages_that_went_and_came_back(machine: Machine) -> None:
    """What was made for an earlier installation does not hide that one is gone."""
    home, libraries = machine.found()
    library = machine.site / "nvidia/cublas/lib/libcublas.so.11"
    library.unlink()
    refused(machine.source(CUDA_HOME=home, LD_LIBRARY_PATH=libraries), "libcublas.so.11 missing")
    library.touch()
    assert machine.found(CUDA_HOME=home, LD_LIBRARY_PATH=libraries) == (home, libraries)


@pytest.mark.parametrize("folder", ["lib64", "lib"])
def test_a_cuda_11_of_the_system_is_left_alone(machine: Machine, tmp_path: Path, folder: str) -> None:
    library = tmp_path / "cuda" / folder / "libcublas.so.11"
    library.parent.mkdir(parents=True)
    library.touch()
    assert machine.found(CUDA_HOME=str(tmp_path / "cuda"), LD_LIBRARY_PATH="/mine") == (str(tmp_path / "cuda"), "/mine")
    assert not machine.cache.exists()


def test_a_cuda_12_of_the_system_is_passed_over(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "cuda" / "lib64").mkdir(parents=True)
    (tmp_path / "cuda" / "lib64" / "libcublas.so.12").touch()
    home, _ = machine.found(CUDA_HOME=str(tmp_path / "cuda"))
    assert home.startswith(str(machine.cache))


def test_a_cache_that_cannot_be_written(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(machine.source(XDG_CACHE_HOME=str(tmp_path / "file")), "cannot write", "XDG_CACHE_HOME")


def test_a_python_that_does_not_run(machine: Machine) -> None:
    refused(machine.source(PYTHON="/nowhere/python"), "'/nowhere/python' does not run")
