"""Checkpoints that know what they hold, and say what of them was used."""

import logging
from typing import Any, Dict, Mapping, Optional, Sequence

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from torch import Tensor, nn

from .setup import class_names, read_checkpoint

__all__ = ["VISCheckpointer", "build_checkpointer"]

logger = logging.getLogger(__name__)


def build_checkpointer(
    cfg: CfgNode, model: nn.Module, save_dir: str = "", **checkpointables: Any
) -> "VISCheckpointer":
    """The checkpointer of a prepared config.

    Args:
        cfg: its meta-architecture, classes and seed are stored and compared.
        model: the model to load and save; may be wrapped for data-parallel training.
        save_dir: where ``save`` writes; empty: nowhere.
        checkpointables: objects with ``state_dict`` and ``load_state_dict`` that travel along.
    """
    identity = {
        "meta_architecture": cfg.MODEL.META_ARCHITECTURE,
        "num_classes": cfg.MODEL.VIS.NUM_CLASSES,
        "thing_classes": class_names(cfg),
        "seed": cfg.SEED,
    }
    return VISCheckpointer(
        model,
        save_dir,
        identity=identity,
        allow_pickle=cfg.MODEL.VIS.ALLOW_PICKLE,
        **checkpointables,
    )


class VISCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer, with an identity in every file and nothing executed on loading.

    Args:
        model: see ``build_checkpointer``.
        save_dir: folder of the checkpoints.
        identity: stored under the key "vis_d2": ``meta_architecture``, ``num_classes``,
            ``thing_classes`` (may be empty: unknown) and ``seed``.
        allow_pickle: read ``.pkl`` files. A pickle can run any code while it is read.
        save_to_disk: False: ``save`` does nothing. None: only the main process saves.
        checkpointables: see ``build_checkpointer``.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        identity: Mapping[str, Any],
        allow_pickle: bool = False,
        save_to_disk: Optional[bool] = None,
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.identity = dict(identity)
        self.allow_pickle = allow_pickle

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name``.pth with the model, everything that travels along, and the identity.

        Raises:
            FloatingPointError: a weight is NaN or infinite. Earlier checkpoints stay as they are.
        """
        for key, value in self.model.state_dict().items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                last = self.get_checkpoint_file() or "none"
                raise FloatingPointError(
                    f"{name} was not saved: {key} is not finite (last good checkpoint: {last})"
                )
        super().save(name, vis_d2=self.identity, **kwargs)

    def load(self, path: str, *args: Any, **kwargs: Any) -> Dict[str, Any]:
        """Load a file; see the parent.

        Raises:
            ValueError: it cannot be read, is a pickle that is not allowed, or is of another model
                or of other classes; the message names the file.
        """
        try:
            return super().load(path, *args, **kwargs)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error.__cause__

    def _load_file(self, filename: str) -> Dict[str, Any]:
        if filename.endswith(".pkl"):
            if not self.allow_pickle:
                raise ValueError(
                    "this is a pickle, which can run any code while it is read; if you"
                    " trust its source, set MODEL.VIS.ALLOW_PICKLE True"
                )
            return super()._load_file(filename)
        loaded = read_checkpoint(filename)
        return loaded if "model" in loaded else {"model": loaded}

    def _load_model(self, checkpoint: Dict[str, Any]) -> Any:
        if "vis_d2" in checkpoint:
            _compare_identities(checkpoint["vis_d2"], self.identity)
        _check_state(checkpoint["model"])
        offered = len(checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        expected = len(self.model.state_dict())
        wrong_shape = incompatible.incorrect_shapes
        # Counted from what the file offers: batch norms fill in some of what it lacks.
        matched = offered - len(incompatible.unexpected_keys) - len(wrong_shape)
        shapes = [f"{key} {list(theirs)} -> {list(ours)}" for key, theirs, ours in wrong_shape]
        report = (
            f"matched {matched} of the model's {expected} tensors and of the file's {offered}"
            f" (skipped for their shape: {'; '.join(shapes) or 'none'})"
        )
        if matched == 0 or matched < min(expected, offered) / 2:
            raise ValueError(f"this is a checkpoint of another model: {report}")
        logger.info("checkpoint: %s", report)
        return incompatible


def _check_state(state: Any) -> None:
    if isinstance(state, dict):
        wrong = [(k, v) for k, v in state.items() if not isinstance(v, (Tensor, np.ndarray))]
    else:
        wrong = [("model", state)]
    if wrong:
        key, value = wrong[0]
        raise ValueError(
            "expected tensors by their names, alone or as the entry 'model', but"
            f" {key!r} is of type {type(value).__name__}"
        )


def _compare_identities(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    if theirs["meta_architecture"] != ours["meta_architecture"]:
        raise ValueError(
            f"this is a checkpoint of another model: {theirs['meta_architecture']}, but the config"
            f" builds {ours['meta_architecture']}"
        )
    if theirs["num_classes"] == ours["num_classes"] and _same_names(
        theirs["thing_classes"], ours["thing_classes"]
    ):
        return
    raise ValueError(
        "the checkpoint was trained on other classes:"
        f" {_describe_classes(theirs)} in the checkpoint, {_describe_classes(ours)} here."
        " To start from it on other classes, convert it with vis_d2.checkpoint.convert_checkpoint,"
        " which remaps or drops the rows of the classes"
    )


def _same_names(theirs: Sequence[str], ours: Sequence[str]) -> bool:
    return not theirs or not ours or list(theirs) == list(ours)  # empty: unknown


def _describe_classes(identity: Mapping[str, Any]) -> str:
    names = ", ".join(identity["thing_classes"]) or "names unknown"
    return f"{identity['num_classes']} ({names})"
