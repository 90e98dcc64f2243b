"""Makes the next items of an iterator while the current one is in use."""

import queue
import threading
from collections.abc import Generator, Iterator


def prefetch(source: Generator, depth: int) -> Iterator:
    """The items of an iterator, up to ``depth`` of them prefetched by a thread; its errors are raised here.

    The thread starts when the first item is requested; it ends when the generator is exhausted, closed or dropped.
    """
    made: queue.Queue = queue.Queue(depth)
    stop, end = threading.Event(), object()

    def put(item: object) -> None:
        while not stop.is_set():
            try:
                return made.put(item, timeout=0.05)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in source:
                put(item)
                if stop.is_set():
                    break
            put(end)
        except Exception as error:  # the consumer raises it
            put(error)
        finally:
            source.close()

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        while (item := made.get()) is not end:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
