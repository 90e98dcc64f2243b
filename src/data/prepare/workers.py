"""Maps a function over many items in several processes: results in the order of the items, bounded memory."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from typing import Any

CHUNK = 16  # items sent to a worker at once
CHUNKS_AHEAD = 4  # for each worker; bounds memory


def ordered_map(function: Callable[[list], list], items: Iterable, workers: int) -> Iterator[Any]:
    """Results of ``function``, which takes a list of items and returns one of results, in the order of the items.

    Args:
        function: pickled once for each chunk, so that it should be small.
        items: read in this process, a little ahead of the results.
        workers: processes; with 1 everything runs in this process.

    Raises:
        BrokenProcessPool: a worker died.
    """
    source = iter(items)
    chunks = iter(lambda: list(islice(source, CHUNK)), [])
    if workers == 1:
        for chunk in chunks:
            yield from function(chunk)
        return
    # spawned, not forked: a forked child inherits the locks held by threads of this process
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start)
    prefetch: deque[Future] = deque()
    try:
        for chunk in chunks:
            prefetch.append(pool.submit(function, chunk))
            if len(prefetch) > workers * CHUNKS_AHEAD:
                yield from prefetch.popleft().result()
        while prefetch:
            yield from prefetch.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start() -> None:
    """Initialises a worker: the parent handles Ctrl-C, and the worker ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # a killed parent closes no queue, so that its workers would not notice
    multiprocessing.parent_process().join()
    os._exit(1)
