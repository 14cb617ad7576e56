"""Several data sets in one training, each as often as the config says."""

from typing import Iterator, List, Sequence

import numpy as np
from detectron2.utils import comm

__all__ = ["MixtureSampler", "check_ratio"]


class MixtureSampler:
    """Endless indices into joined data sets, of which each is drawn from with its own weight.

    Every index is a draw of a set and the next of that set's entries, all of which come once before
    any comes again. The processes share one stream out, as with detectron2's ``TrainingSampler``.

    Args:
        sizes: number of entries of each set, >= 1; the sets are joined in this order.
        weights: how often each set is drawn, > 0; they need not sum to 1.
        seed: the same in all processes. Each iteration starts the same stream.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int) -> None:
        self.sizes = sizes
        self.weights = np.array(weights, np.float64)
        self.seed = seed

    def __iter__(self) -> Iterator[int]:
        rank, processes = comm.get_rank(), comm.get_world_size()
        for number, index in enumerate(self._indices()):
            if number % processes == rank:
                yield index

    def _indices(self) -> Iterator[int]:
        # A generator for each set: what one gives does not depend on the others' sizes.
        seeds = np.random.SeedSequence(self.seed).spawn(len(self.sizes) + 1)
        choose, *shuffle = map(np.random.default_rng, seeds)
        starts = np.cumsum([0, *self.sizes[:-1]])
        sets = [_epochs(*each) for each in zip(starts, self.sizes, shuffle)]
        ends = np.cumsum(self.weights / self.weights.sum())
        while True:
            drawn = int(np.searchsorted(ends, choose.random(), side="right"))
            yield next(sets[min(drawn, len(sets) - 1)])  # the ends may sum to a little less than 1


def check_ratio(ratio: Sequence[float], names: Sequence[str]) -> List[float]:
    """The weights of ``DATASETS.TRAIN_RATIO``.

    Args:
        ratio: one weight per data set.
        names: those of ``DATASETS.TRAIN``.

    Raises:
        ValueError: not as many as data sets, or one that is not a positive number.
    """
    if len(ratio) != len(names):
        raise ValueError(
            f"DATASETS.TRAIN_RATIO has {len(ratio)} numbers, but DATASETS.TRAIN names {len(names)} "
            f"data sets ({', '.join(names)}); expected one number for each"
        )
    for name, weight in zip(names, ratio):
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not number or not 0 < weight < float("inf"):
            raise ValueError(
                f"DATASETS.TRAIN_RATIO: {weight!r} for {name}, expected a positive number (leave a "
                "set that is not to be used out of DATASETS.TRAIN)"
            )
    return [float(weight) for weight in ratio]


def _epochs(start: int, size: int, rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from (start + rng.permutation(size)).tolist()
