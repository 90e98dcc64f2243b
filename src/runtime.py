"""Device, mode, seed and ranks: the only place that asks which device this is."""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os
import random
import shutil
import sys

import mindspore as ms
import numpy as np

from src.config import RuntimeConfig
from src.errors import UserError

PRODUCT_TOLERANCE = 0.2  # of sums of 96 products, also where an accelerator multiplies fp32 in a shorter type
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
    ms.set_context(mode=ms.GRAPH_MODE if config.mode == "graph" else ms.PYNATIVE_MODE)
    if config.graph_kernel:
        _fuse_kernels()
    if is_cpu():
        _check_precision(config.precision)
        keep_freed_memory()
        # an operator that pynative mode hands to another thread is waited for by spinning: 2 ms a result on a free core
        with contextlib.suppress(RuntimeError):  # too late where some operator has run: then it stays slow
            ms.runtime.launch_blocking()
    if seed is not None:
        seed_everything(seed)
    return _join_ranks() if config.distributed else (0, 1)


def _choose_device(device: str) -> None:
    try:
        ms.set_device(device)
    except (RuntimeError, ValueError) as error:
        if "has been initialized" in str(error) and ms.get_context("device_target") == device:
            return  # whoever calls the library has computed on it already
        reason = str(error).strip().splitlines()[0].partition(" Please check")[0]  # behind it: how to build MindSpore
        raise RuntimeSetupError(
            f"runtime.device={device} is not usable here: {reason} runtime.device=CPU works everywhere"
        ) from None


def _check_precision(precision: str) -> None:
    """What half precision means on a CPU."""
    if precision == "bf16":
        raise RuntimeSetupError("runtime.precision=bf16: MindSpore has no bf16 products for a CPU; take fp32, or fp16")
    if precision == "fp16":
        print("runtime.precision=fp16 is slower than fp32 on a CPU: it is for accelerators", flush=True)


def check_product() -> str:
    """Multiplies two matrices on the device and says in one line how far the product is from NumPy's.

    Raises:
        RuntimeSetupError: the device gives a wrong product.
    """
    x = np.random.default_rng(0).standard_normal((64, 96), np.float32)
    found, wanted = ms.ops.matmul(ms.Tensor(x), ms.Tensor(x.T.copy())).asnumpy(), x @ x.T
    error = float(np.abs(found - wanted).max())
    device = ms.get_context("device_target")
    if not error <= PRODUCT_TOLERANCE:
        raise RuntimeSetupError(f"{device}: a product of two matrices is off by {error:.1e}: check the driver")
    return f"{device}: MindSpore {ms.__version__}, a product of two matrices is off by {error:.1e}"


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
