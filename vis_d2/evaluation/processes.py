"""Work on many items in several processes."""

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Callable, Iterator, List, Sequence, Tuple, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_CHUNKS_PER_PROCESS = 4  # so that none has to wait long for the others at the end


def forked_map(
    function: Callable[[Item], Result], items: Sequence[Item], processes: int
) -> Iterator[Result]:
    """``map``, in forked processes where the system has them.

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
    size = -(-len(items) // (processes * _CHUNKS_PER_PROCESS))
    chunks = [items[start : start + size] for start in range(0, len(items), size)]
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, context, _share, ((function, chunks),)) as pool:
        for results in pool.map(_work, range(len(chunks))):
            yield from results


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


_shared: Tuple[Callable[[Any], Any], Sequence[Sequence[Any]]]  # set in the forked processes only


def _share(value: Tuple[Callable[[Any], Any], Sequence[Sequence[Any]]]) -> None:
    global _shared
    _shared = value


def _work(index: int) -> List[Any]:
    function, chunks = _shared
    return [function(item) for item in chunks[index]]
