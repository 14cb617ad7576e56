"""One evaluation of a model on a data set, and what makes two of them the same."""

import hashlib
import json
import logging
from typing import Any, Dict, Iterable, List

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from torch import nn

from .manifest import file_checksum, weights_checksum

__all__ = ["evaluation_identity", "run_evaluation"]

logger = logging.getLogger(__name__)

# Parts of a config that decide what a model finds, and keys in them that do not.
_DECISIVE = ("MODEL", "INPUT", "TEST")
_INDIFFERENT = (("MODEL", "WEIGHTS"), ("MODEL", "DEVICE"), ("TEST", "EVAL_PERIOD"))


def evaluation_identity(cfg: CfgNode, model: nn.Module, dataset_name: str) -> str:
    """A fingerprint of weights, config and annotation file.

    It does not know the program: results of a model whose code was changed meanwhile look the same.

    Args:
        cfg: a config.
        model: with the weights that are evaluated; their file's name does not matter.
        dataset_name: a registered data set.
    """
    parts = {part: cfg.get(part).clone() for part in _DECISIVE}
    for part, key in _INDIFFERENT:
        parts[part].defrost()
        parts[part].pop(key, None)
    content: List[Any] = [parts[part].dump() for part in _DECISIVE]
    content += [weights_checksum(model), dataset_name]
    content.append(file_checksum(getattr(MetadataCatalog.get(dataset_name), "json_file", "")))
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def run_evaluation(
    model: nn.Module, loader: Iterable[List[Dict[str, Any]]], evaluator: DatasetEvaluator
) -> Dict[str, Any]:
    """detectron2's evaluation loop; says what can be done where it ends early.

    Args:
        model: called with the batches.
        loader: batches, with a length.
        evaluator: takes inputs and outputs.

    Returns:
        The metrics; filled in the main process only.
    """
    try:
        return inference_on_dataset(model, loader, evaluator) or {}
    except BaseException:  # an interruption, too
        logger.error("the evaluation ended early; with --resume it goes on after the last video")
        raise
