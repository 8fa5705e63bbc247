"""Work spread over processes, its results in the order of the work: one process or many give the same."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from finetune.errors import FinetuneError

Item = TypeVar("Item")
Result = TypeVar("Result")

_make: Any = None
_work: Any = None


def ordered_map(make: Callable[[], Callable[[Item], Result]], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield `make()(item)` for each item, in order; with several workers each calls `make` once for itself.

    `make` has to be picklable. Few items are under way at a time, so that a fast reader does not fill the memory.
    """
    if workers <= 1:
        work = make()
        yield from (work(item) for item in items)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of threads that it does not copy
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(make,))
    try:
        pending: deque[Any] = deque()
        for item in items:
            pending.append(executor.submit(_do, item))
            if len(pending) > workers + 1:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise FinetuneError(
            f"data.workers: one of the {workers} worker processes was ended from outside, most likely for want of "
            "memory. Lower data.workers, and run the command again."
        ) from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _begin(make: Any) -> None:
    global _make, _work
    _make, _work = make, None
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business: it stops us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Leave when the parent is gone, even if it was killed and could not say so."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)


def _do(item: Any) -> Any:
    global _work
    if _work is None:  # made at the first item, where an error reaches the parent
        _work = _make()
    return _work(item)
