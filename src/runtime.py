"""Device, mode, seed and ranks: the only place that asks which device this is."""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os
import random
import shutil
import sys
from collections.abc import Sequence

import mindspore as ms
import numpy as np

from src.config import RuntimeConfig
from src.errors import UserError

PRODUCT_TOLERANCE = 0.2  # of sums of 96 products, also where an accelerator multiplies fp32 in a shorter type
DRIVER = "libcuda.so.1"
# what the GPU backend of MindSpore 2.10 is linked to; scripts/gpu_env.sh names the packages that have it
GPU_LIBRARIES = (
    DRIVER,
    *("libcublas.so.11", "libcudart.so.11.0", "libcudnn.so.8", "libcufft.so.10", "libcurand.so.10"),
    *("libcusolver.so.11", "libcusparse.so.11", "libnvrtc.so.11.2"),
)
CAPABILITIES = ((6, 0), (9, 0))  # of cards: first and last that MindSpore's kernels and CUDA 11.8 have code for
PYTHONS = ((3, 10), (3, 12))  # first and last version that MindSpore 2.10 has a wheel for


class RuntimeSetupError(UserError):
    """The environment cannot run the project; the message is one line and says how to fix it."""


def check_environment() -> None:
    """Raises RuntimeSetupError for a Python or numpy that MindSpore cannot work with."""
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        found = ".".join(map(str, sys.version_info[:2]))
        raise RuntimeSetupError(f"Python {found} is not supported: MindSpore 2.10 needs 3.10, 3.11 or 3.12")
    numpy = importlib.metadata.version("numpy")
    if int(numpy.split(".")[0]) >= 2:
        # MindSpore declares no bound, yet its shape parsing fails under numpy 2 with a SystemError
        raise RuntimeSetupError(f"numpy {numpy} breaks MindSpore 2.10: pip install 'numpy>=1.26,<2'")


def device() -> str:
    """Where graphs run: CPU, GPU or Ascend."""
    return ms.get_context("device_target")


def is_cpu() -> bool:
    """True when graphs run on a CPU."""
    return device() == "CPU"


def setup(config: RuntimeConfig, seed: int | None) -> tuple[int, int]:
    """Prepares device, mode, seeds (None: leaves them alone) and, under msrun, the communication.

    Returns:
        (rank, number of ranks).

    Raises:
        RuntimeSetupError: the device is not there or lacks the precision, or ``distributed`` without msrun.
    """
    check_environment()
    _choose_device(config.device)
    _check_precision(config.precision)
    if config.device == "GPU" and not config.distributed:  # the communication chooses each rank's card, and later
        _check_card()
    ms.set_context(mode=ms.GRAPH_MODE if config.mode == "graph" else ms.PYNATIVE_MODE)
    if config.graph_kernel:
        _fuse_kernels()
    if is_cpu():
        keep_freed_memory()
        # an operator that pynative mode hands to another thread is waited for by spinning: 2 ms a result on a free core
        with contextlib.suppress(RuntimeError):  # too late where some operator has run: then it stays slow
            ms.runtime.launch_blocking()
    if seed is not None:
        seed_everything(seed)
    return _join_ranks() if config.distributed else (0, 1)


def _choose_device(device: str) -> None:
    reason = _why_no_gpu() if device == "GPU" else ""  # before MindSpore looks, whose errors name files to be built
    if reason:
        raise _unusable(device, reason)
    try:
        ms.set_device(device)
    except (RuntimeError, ValueError) as error:
        if "has been initialized" in str(error) and ms.get_context("device_target") == device:
            return  # whoever calls the library has computed on it already
        raise _unusable(device, first_line(error).partition(" Please check")[0]) from None  # behind it: how to build


def _unusable(device: str, reason: str) -> RuntimeSetupError:
    always = "runtime.device=CPU works everywhere"
    return RuntimeSetupError(f"runtime.device={device} is not usable here: {reason} {always}")


def first_line(error: Exception) -> str:
    """What an error of MindSpore says, below the rules and headings that its messages begin with."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("-")]
    return lines[0] if lines else type(error).__name__


def _why_no_gpu() -> str:
    missing = missing_gpu_libraries()
    if missing:
        return f"{how_to_get(missing)}."
    if not os.environ.get("CUDA_HOME"):  # without it MindSpore does not look for its GPU backend
        return "CUDA_HOME is not set: source scripts/gpu_env.sh."
    return ""


def missing_gpu_libraries() -> list[str]:
    """Libraries of the GPU backend that the linker does not find."""
    return [name for name in GPU_LIBRARIES if not _loads(name)]


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def how_to_get(missing: Sequence[str]) -> str:
    """What to do about missing libraries of the GPU backend."""
    if missing == [DRIVER]:
        return f"{DRIVER} is missing: install the NVIDIA driver"
    driver = " and the NVIDIA driver" if DRIVER in missing else ""
    names = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
    return f"{names} missing: install requirements-gpu.txt{driver}, then source scripts/gpu_env.sh"


def _check_card() -> None:
    """Raises RuntimeSetupError unless there is a card, and code for it."""
    try:
        capability = ms.hal.get_device_capability(0) if ms.device_context.gpu.device_count() else None
        reason = "the driver finds none"
    except RuntimeError as error:  # of the driver
        capability, reason = None, first_line(error)
    if capability is None:
        raise _unusable("GPU", f"no card ({reason}): see nvidia-smi and CUDA_VISIBLE_DEVICES.")
    if not CAPABILITIES[0] <= capability <= CAPABILITIES[1]:
        found, first, last = (".".join(map(str, each)) for each in (capability, *CAPABILITIES))
        code = f"CUDA 11.8 has code for {first} to {last}"
        raise _unusable("GPU", f"its compute capability is {found}, and {code} (docs/gpu.md).")


def _check_precision(precision: str) -> None:
    """What half precision means on a CPU, and what no kernel is there for."""
    if precision == "bf16" and device() != "Ascend":
        products = f"MindSpore has no bf16 products for a {device()}"
        raise RuntimeSetupError(f"runtime.precision=bf16: {products}; take fp32, or fp16")
    if precision == "fp16" and is_cpu():
        print("runtime.precision=fp16 is slower than fp32 on a CPU: it is for accelerators", flush=True)


def check_product() -> str:
    """Multiplies two matrices on the device and says in one line how far the product is from NumPy's.

    Raises:
        RuntimeSetupError: the device gives a wrong product, or none.
    """
    x = np.random.default_rng(0).standard_normal((64, 96), np.float32)
    try:
        found = ms.ops.matmul(ms.Tensor(x), ms.Tensor(x.T.copy())).asnumpy()
    except RuntimeError as error:
        raise RuntimeSetupError(f"{device()}: cannot multiply two matrices: {first_line(error)}") from None
    error = float(np.abs(found - x @ x.T).max())
    if not error <= PRODUCT_TOLERANCE:
        raise RuntimeSetupError(f"{device()}: a product of two matrices is off by {error:.1e}: check the driver")
    return f"{device()}: MindSpore {ms.__version__}, a product of two matrices is off by {error:.1e}"


def _fuse_kernels() -> None:
    missing = [] if shutil.which("g++") else ["g++"]
    missing += [name for name in ("decorator", "attr") if importlib.util.find_spec(name) is None]
    if is_cpu() and missing:
        raise RuntimeSetupError(f"runtime.graph_kernel=true needs {', '.join(missing)}: install, or leave it false")
    ms.set_context(enable_graph_kernel=True)


def keep_freed_memory() -> None:
    """Lets glibc keep what is freed: every operator allocates its output, and page faults cost a fifth of a step."""
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # names of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # another C library has its own ways
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 2**28)


def seed_everything(seed: int) -> None:
    """Seeds Python, numpy and MindSpore (parameter initialisation and dropout)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    ms.set_seed(seed % 2**32)  # it seeds numpy as well, which takes no more


def _join_ranks() -> tuple[int, int]:
    if "MS_WORKER_NUM" not in os.environ and "RANK_TABLE_FILE" not in os.environ:
        raise RuntimeSetupError("runtime.distributed=true needs msrun: see scripts/run_distributed_ascend.sh")
    from mindspore.communication import get_group_size, get_rank, init

    init()
    rank, ranks = get_rank(), get_group_size()
    ms.set_auto_parallel_context(parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True, device_num=ranks)
    return rank, ranks
