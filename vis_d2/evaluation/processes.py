"""Work on many items in several processes."""

import gc
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, Callable, Iterator, List, Sequence, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def forked_map(
    function: Callable[[Item], Result], items: Sequence[Item], processes: int
) -> Iterator[Result]:
    """``map``, spread over this process and forked ones where the system has them.

    They see function and items as they are in memory, so only the results have to travel. Forking
    does not go well with threads and GPUs that are in use.

    Args:
        function: what to do with an item; an error in it is raised here.
        items: what to work on.
        processes: how many processes; with one, or few items, all is done in this one.

    Yields:
        The results in the order of the items.
    """
    processes = min(processes, len(items))
    if processes < 2 or not sys.platform.startswith("linux"):
        yield from map(function, items)
        return
    # A fork takes its time, the more the larger this process is. So there is no pool of processes,
    # and this one does its share.
    context = multiprocessing.get_context("fork")
    workers = []
    try:
        for k in range(1, processes):
            receiver, sender = context.Pipe(duplex=False)
            share = items[k::processes]
            worker = context.Process(target=_work, args=(sender, function, share), daemon=True)
            worker.start()
            sender.close()
            workers.append((worker, receiver))
        shares = [[function(item) for item in items[::processes]]]
        shares += [_receive(receiver) for _, receiver in workers]
        for n in range(len(items)):
            yield shares[n % processes][n // processes]
    finally:
        for worker, receiver in workers:
            receiver.close()
            worker.terminate()
            worker.join()


def run_fresh(function: Callable[..., Result], *args: Any) -> Result:
    """Call a function in a new process, which shares nothing with this one.

    Args:
        function: one that can be imported.
        args: its arguments; they and what it returns travel between the processes.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def usable_processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _work(sender: Connection, function: Callable[[Item], Result], items: Sequence[Item]) -> None:
    gc.disable()  # looking for cycles would copy all memory that is shared with the parent
    try:
        outcome = ([function(item) for item in items], None)
    except Exception as error:
        outcome = ([], error)
    sender.send(outcome)
    sender.close()


def _receive(receiver: Connection) -> List[Any]:
    try:
        results, error = receiver.recv()
    except EOFError:
        raise RuntimeError("a process ended before it had sent its results") from None
    if error is not None:
        raise error
    return results
