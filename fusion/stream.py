"""Work on many things side by side, with the results in order and few of them in memory."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

A = TypeVar("A")
B = TypeVar("B")


def in_order(work: Callable[[A], B], items: Iterable[A], threads: int) -> Iterator[B]:
    """work(item) for every item, in order, by some threads; none is begun before those ahead of it are nearly taken.

    At most `threads` results wait or are in the making at once. An error of one is raised in its place.
    """
    if threads <= 1:
        with one_thread():
            for item in items:
                yield work(item)
        return
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    waiting: deque[Future[B]] = deque()
    try:
        for item in items:
            if len(waiting) == threads:
                yield waiting.popleft().result()
            waiting.append(pool.submit(work, item))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def aside(work: Callable[[], B]) -> "Future[B]":
    """What `work` will give, while the caller goes on; a caller that is interrupted does not wait for it."""
    future: Future[B] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread, so that the order of sums, and with it the bytes, does not depend on the machine's cores."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
