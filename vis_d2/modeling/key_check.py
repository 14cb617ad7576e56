"""Checks of a system's configuration keys, with one wording for all systems."""

from functools import reduce
from typing import Any, Iterable, Mapping, Sequence

from detectron2.config import CfgNode

__all__ = ["KeyCheck"]


class KeyCheck:
    """Raises a ValueError that names the key, what was expected and what was found.

    Numbers are compared so that "not a number" fails, too.

    Args:
        cfg: the whole config.
        section: where the keys are, as "MODEL.NAME"; "" for full names. A key may go further down,
            as in "PART.KEY".
    """

    def __init__(self, cfg: CfgNode, section: str) -> None:
        self.cfg = cfg
        self.section = section

    def value(self, key: str) -> Any:
        """What the config holds."""
        return reduce(lambda node, name: node[name], self._name(key).split("."), self.cfg)

    def expect(self, key: str, fits: bool, expected: str) -> None:
        """``fits``, or the error."""
        if not fits:
            found = self.value(key)
            raise ValueError(f"{self._name(key)}: expected {expected}, found {found!r}")

    def choices(self, allowed: Mapping[str, Sequence[Any]]) -> None:
        """Each key has one of its values."""
        for key, values in allowed.items():
            self.expect(key, self.value(key) in values, f"one of {values}")

    def at_least(self, least: float, keys: Iterable[str]) -> None:
        """Each key has a number from ``least``."""
        for key in keys:
            self.expect(key, self.value(key) >= least, f"a number from {least}")

    def above_zero(self, keys: Iterable[str]) -> None:
        """Each key has a number above 0."""
        for key in keys:
            self.expect(key, self.value(key) > 0, "a number above 0")

    def shares(self, keys: Iterable[str], below_one: bool = False) -> None:
        """Each key has a number in [0, 1], or in [0, 1)."""
        for key in keys:
            number = self.value(key)
            if below_one:
                self.expect(key, 0 <= number < 1, "a number from 0, below 1")
            else:
                self.expect(key, 0 <= number <= 1, "a number in [0, 1]")

    def multiples(self, of: str, keys: Iterable[str]) -> None:
        """Each key has a positive multiple of the key ``of``."""
        unit = self.value(of)
        for key in keys:
            number = self.value(key)
            fits = number > 0 and number % unit == 0
            self.expect(key, fits, f"a multiple of {of} ({unit})")

    def _name(self, key: str) -> str:
        return f"{self.section}.{key}" if self.section else key
