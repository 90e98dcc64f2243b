"""What benchmarks of steps share: processes of their own, rounds that are not counted, the machine's speed."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

WARM_UP = 5  # rounds that are not counted: MindSpore's first four after compilation take a quarter longer
PEAK_SIZE = 2048  # of the matrix product that shows what the machine can do


def run_apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls in a new process: MindSpore does not give back a graph's memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
