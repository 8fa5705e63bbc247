"""Several processes of one training: starting them, what only the main one does, and what all of them agree on."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from finetune.errors import FinetuneError, Terminated

Result = TypeVar("Result")

MESSAGES = "FINETUNE_MESSAGES"  # the folder in which processes leave what they have to say
# How long processes may take to end by themselves after a signal: a step, and a checkpoint
SHUTDOWN_SECONDS = 600


class OtherProcessFailed(BaseException):
    """The main process has failed and said so; this one ends with the same exit code and no words."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def count() -> int:
    """Return how many processes train together, as a launcher says it (torchrun's variables)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return which of them this one is, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def is_main() -> bool:
    """Tell whether this process is the one that prints and writes files."""
    return rank() == 0


def on_main(work: Callable[[], Result]) -> Result:
    """Do something in the main process alone; the others wait for its result, and end if it fails.

    The result is pickled between processes of one training. All of them have to come here.
    """
    if count() == 1:
        return work()
    if not is_main():
        return cast(Result, _received())
    try:
        result = work()
    except BaseException as error:
        _broadcast([None, _exit_code(error)])
        raise
    _broadcast([result, None])
    return result


def _exit_code(error: BaseException) -> int:
    if isinstance(error, FinetuneError):
        return error.exit_code
    return {KeyboardInterrupt: 130, Terminated: 143}.get(type(error), 1)


def _received() -> Any:
    result, code = _broadcast([None, None])
    if code is not None:
        raise OtherProcessFailed(code)
    return result


def _broadcast(objects: list[Any]) -> list[Any]:
    from accelerate.utils import broadcast_object_list

    return cast(list[Any], broadcast_object_list(objects))


def gathered(own: list[Any]) -> list[Any]:
    """Return the items of all processes, those of the first before those of the second."""
    if count() == 1:
        return own
    from accelerate.utils import gather_object

    return cast(list[Any], gather_object(own))


def any_of(flag: bool) -> bool:
    """Tell whether a flag is set in any process."""
    return flag if count() == 1 else any(gathered([flag]))


def say(message: str) -> str | None:
    """Return what a process is to print of its end: the main one its message, others nothing that it says too.

    Where the launcher is ours, it prints their messages if the main one was not to blame.
    """
    if is_main():
        return message
    folder = os.environ.get(MESSAGES)
    if folder is None:
        return f"process {rank()}: {message}"
    (Path(folder) / str(rank())).write_text(f"process {rank()}: {message}", encoding="utf-8")
    return None


def launch(arguments: Sequence[str], processes: int, threads: int | None) -> tuple[int, str]:
    """Run the command line with these arguments in several processes; return the exit code, and what is to be said.

    They are started by torch's launcher (torch.distributed.run), and share the cores unless `threads` says otherwise.
    """
    with tempfile.TemporaryDirectory(prefix="finetune-") as folder:
        os.environ[MESSAGES] = folder
        codes = _launched(arguments, processes, threads)
        if not any(codes):
            return 0, ""
        ended = [code if code >= 0 else 128 - code for code in codes]
        if codes[0] not in (0, -signal.SIGTERM):
            return ended[0], ""
        said = [path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())]
        others = [code for code, signalled in zip(ended, codes, strict=True) if signalled not in (0, -signal.SIGTERM)]
        return (others or ended)[0], "\n".join(said[:1])


def _launched(arguments: Sequence[str], processes: int, threads: int | None) -> list[int]:
    """Return the exit codes of the processes, in their order."""
    import logging

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):  # who fails says so itself
            logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ["OMP_NUM_THREADS"] = str(threads or max(1, (os.cpu_count() or 1) // processes))
    settings = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id="finetune", rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.1, shutdown_timeout=SHUTDOWN_SECONDS,
    )  # fmt: skip
    try:
        elastic_launch(settings, sys.executable)("-m", "finetune", *arguments)
    except ChildFailedError as error:
        failed = error.failures
        return [failed[number].exitcode if number in failed else 0 for number in range(processes)]
    except SignalException as error:
        return [128 + int(error.sigval)] * processes
    return [0] * processes


@contextlib.contextmanager
def leaving_in_order() -> Iterator[None]:
    """Leave the group of processes at the end."""
    try:
        yield
    finally:
        if count() > 1:
            import torch.distributed as group

            if group.is_initialized():
                group.destroy_process_group()
