"""Turn other people's weights into ours: rename keys, move class rows, say what was used."""

import re
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor

__all__ = [
    "LoadReport",
    "State",
    "convert_checkpoint",
    "match_state",
    "read_state",
    "remap_rows",
    "rename_keys",
]

State = Dict[str, Tensor]
Rule = Tuple[str, Optional[str]]

MOST_NAMES = 8  # of each kind in an error


@dataclass
class LoadReport:
    """What became of the tensors of a file.

    Attributes:
        matched: keys that the model takes over.
        skipped: (key, shape in the file, shape in the model) where shapes differ.
        missing: keys of the model that the file lacks.
        unexpected: keys of the file that the model lacks.
    """

    matched: List[str]
    skipped: List[Tuple[str, Tuple[int, ...], Tuple[int, ...]]]
    missing: List[str]
    unexpected: List[str]

    def __str__(self) -> str:
        return self.text()

    def text(self, most: Optional[int] = None) -> str:
        """All of it, or of each kind at most so many names."""
        offered = len(self.matched) + len(self.skipped) + len(self.unexpected)
        expected = len(self.matched) + len(self.skipped) + len(self.missing)
        shapes = [f"{key} {list(a)} -> {list(b)}" for key, a, b in self.skipped]
        return (
            f"matched {len(self.matched)} of the model's {expected} and of the file's {offered}"
            f" tensors\n  skipped (shape): {_listed(shapes, most)}"
            f"\n  missing: {_listed(self.missing, most)}"
            f"\n  unexpected: {_listed(self.unexpected, most)}"
        )

    def check(self) -> None:
        """Raise ValueError where fewer than half of the smaller side's tensors matched."""
        rest = min(len(self.missing), len(self.unexpected)) + len(self.skipped)
        if len(self.matched) < rest or not self.matched:
            report = self.text(MOST_NAMES)
            raise ValueError(f"these are the weights of another model: {report}")


def convert_checkpoint(
    source: str,
    output: str,
    model_state: Mapping[str, Tensor],
    *,
    rules: Sequence[Rule] = (),
    adapt: Optional[Callable[[State], State]] = None,
    class_keys: str = "",
    class_rows: Optional[Mapping[int, int]] = None,
    allow_pickle: bool = False,
    extra: Optional[Mapping[str, Any]] = None,
) -> LoadReport:
    """Write ``output`` (.pth) with the tensors of ``source`` that a model can take.

    Args:
        source: see ``read_state``.
        output: path of the new checkpoint.
        model_state: state dict of the model, freshly initialised.
        rules: see ``rename_keys``.
        adapt: called with the renamed tensors before class rows are moved; returns those to go on
            with.
        class_keys: regular expression; the keys (after renaming) whose rows are classes.
        class_rows: row of the model -> row of the source for these keys; the other rows keep the
            model's initial values. None: leave them as they are.
        allow_pickle: see ``read_state``.
        extra: what else the new file holds, beside "model".

    Returns:
        What was used.

    Raises:
        ValueError: fewer than half of the tensors matched.
    """
    state = rename_keys(read_state(source, allow_pickle=allow_pickle), rules)
    if adapt is not None:
        state = adapt(state)
    if class_rows is not None:
        for key in [k for k in state if re.fullmatch(class_keys, k) and k in model_state]:
            state[key] = remap_rows(key, state[key], model_state[key], class_rows)
    usable, report = match_state(state, model_state)
    report.check()
    torch.save({**(extra or {}), "model": usable}, output)
    return report


def read_state(path: str, *, allow_pickle: bool = False) -> State:
    """Read the weights of a file.

    Args:
        path: a ``.pth`` file with tensors and plain containers, or a ``.pkl`` file. The weights
            are its "model" or "state_dict" entry, or all of it; a "module." prefix is removed.
        allow_pickle: read ``.pkl``; a pickle can run any code while it is read.

    Raises:
        ValueError: a pickle that is not allowed.
    """
    if path.endswith(".pkl"):
        if not allow_pickle:
            raise ValueError(
                f"{path} is a pickle, which can run any code while it is read; pass"
                " allow_pickle=True (--allow-pickle) if you trust its source"
            )
        data = DetectionCheckpointer(torch.nn.Identity())._load_file(path)
    else:
        data = torch.load(path, map_location="cpu", weights_only=True)
    state = data.get("model", data.get("state_dict", data))
    return {re.sub(r"^module\.", "", k): torch.as_tensor(v) for k, v in state.items()}


def rename_keys(state: Mapping[str, Tensor], rules: Sequence[Rule]) -> State:
    """Rename keys; the first rule whose pattern fits the whole key decides.

    Args:
        state: key -> tensor.
        rules: (regular expression, replacement with ``\\1`` groups), or (expression, None) to drop
            the tensor. A key that no rule fits keeps its name.

    Raises:
        ValueError: two keys get the same name.
    """
    renamed: State = {}
    origins: Dict[str, str] = {}
    for key, value in state.items():
        new = _apply_rules(key, rules)
        if new is None:
            continue
        if new in renamed:
            raise ValueError(f"{origins[new]} and {key} would both become {new}")
        renamed[new], origins[new] = value, key
    return renamed


def match_state(
    state: Mapping[str, Tensor], model_state: Mapping[str, Tensor]
) -> Tuple[State, LoadReport]:
    """Split ``state`` into what a model can take, and a report of the rest.

    A single number fits whatever its number of axes: some keep it as a vector of length one.
    """
    common = [k for k in state if k in model_state]
    numbers = [k for k in common if state[k].numel() == model_state[k].numel() == 1]
    state = {**state, **{k: state[k].reshape(model_state[k].shape) for k in numbers}}
    fits = [k for k in common if state[k].shape == model_state[k].shape]
    skipped = [
        (k, tuple(state[k].shape), tuple(model_state[k].shape)) for k in common if k not in fits
    ]
    missing = [k for k in model_state if k not in state]
    unexpected = [k for k in state if k not in model_state]
    return {k: state[k] for k in fits}, LoadReport(fits, skipped, missing, unexpected)


def remap_rows(key: str, source: Tensor, initial: Tensor, rows: Mapping[int, int]) -> Tensor:
    """``initial`` with some rows of ``source``; ``source`` itself where more than rows differs.

    Args:
        key: name of the tensor, for the message.
        source: (n, ...).
        initial: (m, ...).
        rows: row of the result -> row of ``source``.

    Raises:
        ValueError: a row does not exist.
    """
    if source.shape[1:] != initial.shape[1:]:
        return source  # not only the classes differ: the report will skip it for its shape
    for to, come_from in rows.items():
        if not (0 <= to < len(initial) and 0 <= come_from < len(source)):
            raise ValueError(
                f"{key}: class rows {to} <- {come_from} do not exist: the model has"
                f" {len(initial)} rows, the file {len(source)}"
            )
    result = initial.clone()
    result[list(rows)] = source[list(rows.values())].to(initial.dtype)
    return result


def _listed(names: Sequence[str], most: Optional[int]) -> str:
    shown = list(names[:most])
    more = len(names) - len(shown)
    return ", ".join(shown + [f"… and {more} more"] * (more > 0)) or "none"


def _apply_rules(key: str, rules: Sequence[Rule]) -> Optional[str]:
    for pattern, replacement in rules:
        found = re.fullmatch(pattern, key)
        if found:
            return None if replacement is None else found.expand(replacement)
    return key
