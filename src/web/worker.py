"""The one thread that runs MindSpore, whose settings belong to a thread and which takes one caller at a time."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Answer = TypeVar("Answer")


class Worker:
    """Runs calls one after the other, in the order in which they come, all in the same thread."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "model")

    def call(self, function: Callable[..., Answer], *args: Any, **options: Any) -> Answer:
        """Waits for the call's turn and returns or raises what it does."""
        return self._pool.submit(function, *args, **options).result()

    def close(self) -> None:
        """Lets the call end that is running; those that wait are cancelled."""
        self._pool.shutdown(cancel_futures=True)
