import os

import pytest

from vis_d2.evaluation.processes import forked_map, run_fresh, usable_processors


def test_results_come_in_order_from_any_number_of_processes():
    offset = 10  # a closure: what is forked need not travel
    for processes in (1, 2, 5):
        items = list(range(23))
        assert list(forked_map(lambda x: x + offset, items, processes)) == [x + 10 for x in items]


def test_several_processes_are_used():
    for processes in (2, 3):
        used = set(forked_map(lambda _: os.getpid(), list(range(8)), processes))
        assert len(used) == processes and os.getpid() in used
    assert set(forked_map(lambda _: os.getpid(), [1], 2)) == {os.getpid()}


def test_an_error_in_another_process_is_raised_here():
    with pytest.raises(ZeroDivisionError):
        list(forked_map(lambda x: 1 / x, [1, 0, 2, 3], 2))


def test_a_fresh_process():
    assert run_fresh(os.getpid) != os.getpid()


def test_there_is_a_processor():
    assert usable_processors() >= 1


def test_a_process_that_dies_is_an_error():
    here = os.getpid()
    with pytest.raises(RuntimeError, match="ended before"):
        list(forked_map(lambda x: x if os.getpid() == here else os._exit(1), [0, 1, 2, 3], 2))


def test_results_larger_than_a_pipe_holds():
    sizes = [len(part) for part in forked_map(lambda n: bytes(n), [300_000] * 5, 2)]
    assert sizes == [300_000] * 5
