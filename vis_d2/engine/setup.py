"""From a config file and the command line to a config that is ready to run."""

import argparse
import difflib
import logging
import re
from typing import Any, Dict, Iterable, Iterator, List, Sequence

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from vis_d2.data.build import check_registered
from vis_d2.structures.rle import shorten

__all__ = [
    "class_names",
    "merge_config",
    "prepare_config",
    "read_checkpoint",
    "resolve_num_classes",
    "setup_job",
]

logger = logging.getLogger(__name__)

_UNKNOWN_KEY = re.compile(r"Non-existent (?:config )?key: ([\w.]+)")
_WRONG_TYPE = re.compile(
    r"Type mismatch \(<class '([\w.]+)'> vs. <class '([\w.]+)'>\) with values "
    r"\((.*?) vs. (.*)\) for config key: ([\w.]+)",
    re.DOTALL,
)


def merge_config(cfg: CfgNode, config_file: str = "", opts: Sequence[str] = ()) -> None:
    """Merge a YAML file and then ``KEY VALUE`` pairs into ``cfg``, in place.

    Args:
        cfg: a config with all the keys that may be set.
        config_file: path of a YAML file; empty for none. Only plain YAML is read: tags that would
            build Python objects are refused.
        opts: alternating keys and values, as on a command line.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is no YAML mapping, a value is of another type than its key's, or the
            last key has no value.
        KeyError: a key does not exist; the message names it and the nearest that do.
    """
    known = list(_key_names(cfg))
    if len(opts) % 2:
        raise ValueError(f"expected KEY VALUE pairs, but {opts[-1]} at the end has no value")
    source = f"config file {config_file!r}"
    try:
        if config_file:
            _merge_file(cfg, config_file)
        source = "the command line"
        cfg.merge_from_list(list(opts))
    except (KeyError, AssertionError) as error:
        found = _UNKNOWN_KEY.search(str(error))
        if found is None:
            raise
        source = config_file if isinstance(error, KeyError) else "the command line"
        raise KeyError(_unknown_key_message(found.group(1), source, known)) from None
    except ValueError as error:
        found = _WRONG_TYPE.search(str(error))
        if found is None:
            raise
        raise ValueError(_wrong_type_message(source, *found.groups())) from None


def _merge_file(cfg: CfgNode, config_file: str) -> None:
    if not PathManager.isfile(config_file):
        raise FileNotFoundError(f"config file {config_file!r} does not exist")
    try:
        with PathManager.open(config_file, "r") as file:
            content = yaml.safe_load(file)
        if not isinstance(content, dict):
            kind = type(content).__name__
            raise ValueError(f"config file {config_file!r} holds a {kind}, expected keys")
        _check_sections(cfg, content, f"config file {config_file!r}")
        cfg.merge_from_file(config_file, allow_unsafe=False)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        message = f"config file {config_file!r} is not plain YAML: {_one_line(error)}"
        raise ValueError(message) from None


def _check_sections(cfg: CfgNode, content: Dict[str, Any], source: str, prefix: str = "") -> None:
    """Raise a ValueError for a value where keys belong; detectron2 would trip over it."""
    for key, value in content.items():
        if not isinstance(cfg.get(key), CfgNode):
            continue
        if not isinstance(value, dict):
            what = f"got {type(value).__name__} {shorten(value)}"
            raise ValueError(f"{prefix}{key} in {source}: expected keys below it, {what}")
        _check_sections(cfg[key], value, source, f"{prefix}{key}.")


def prepare_config(cfg: CfgNode) -> None:
    """Settle what the config leaves open: device, seed, number of classes. In place, idempotent.

    A CUDA device falls back to the CPU where there is none, a negative ``SEED`` becomes a drawn one
    (the same in every process), and ``MODEL.VIS.NUM_CLASSES`` comes from the data sets.

    Raises:
        ValueError: ``MODEL.DEVICE`` is no device, or see ``resolve_num_classes``.
    """
    _check_device(cfg.MODEL.DEVICE)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.info("MODEL.DEVICE is %s but no GPU is available: using cpu", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    if cfg.SEED < 0:
        cfg.SEED = int(comm.shared_random_seed()) % 2**31
        logger.info("SEED was not set: drew %d", cfg.SEED)
    resolve_num_classes(cfg)


def _check_device(name: str) -> None:
    try:
        index = torch.device(name).index or 0
    except RuntimeError:
        message = f"MODEL.DEVICE is {name!r}, expected cpu, cuda, or cuda:1 and the like"
        raise ValueError(message) from None
    found = torch.cuda.device_count()
    if name.startswith("cuda") and 0 < found <= index:
        raise ValueError(f"MODEL.DEVICE is {name!r}, but this machine has {found} GPUs")


def resolve_num_classes(cfg: CfgNode) -> None:
    """Set ``MODEL.VIS.NUM_CLASSES`` where it is -1, in place; see ``class_names``.

    Raises:
        ValueError: it is -1 and the config names no data set.
    """
    names = class_names(cfg)
    if cfg.MODEL.VIS.NUM_CLASSES < 0:
        if not names:
            raise ValueError(
                "MODEL.VIS.NUM_CLASSES is -1 and neither DATASETS.TRAIN nor DATASETS.TEST names a"
                " data set to take the classes from"
            )
        cfg.MODEL.VIS.NUM_CLASSES = len(names)
    elif names and len(names) != cfg.MODEL.VIS.NUM_CLASSES:
        logger.warning(
            "MODEL.VIS.NUM_CLASSES is %d, but the data set has %d classes",
            cfg.MODEL.VIS.NUM_CLASSES,
            len(names),
        )


def class_names(cfg: CfgNode) -> List[str]:
    """Class names in contiguous order: of the first training (else test) set.

    Where that set is not on this machine, those that the checkpoint ``MODEL.WEIGHTS`` was trained
    with; [] where nobody knows and ``MODEL.VIS.NUM_CLASSES`` says how many they are.

    Raises:
        FileNotFoundError, KeyError: nobody knows and ``MODEL.VIS.NUM_CLASSES`` is -1.
    """
    datasets = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if not datasets:
        return []
    try:
        return _dataset_classes(datasets[0])
    except (FileNotFoundError, KeyError):
        names = _checkpoint_classes(cfg.MODEL.WEIGHTS)
        if not names and cfg.MODEL.VIS.NUM_CLASSES < 0:
            raise
        return names


def setup_job(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Prepare and freeze ``cfg``, start the logs, seed this process; in place.

    Args:
        cfg: a merged config.
        args: the command line of detectron2's ``default_argument_parser``.
    """
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="vis_d2")
    prepare_config(cfg)
    cfg.freeze()
    default_setup(cfg, args)


def _dataset_classes(name: str) -> List[str]:
    try:
        return list(MetadataCatalog.get(name).thing_classes)
    except AttributeError:
        check_registered([name])
        DatasetCatalog.get(name)  # detectron2's own sets know their classes once they are loaded
        return list(MetadataCatalog.get(name).thing_classes)


def _checkpoint_classes(path: str) -> List[str]:
    if not path.endswith(".pth") or not PathManager.isfile(path):
        return []
    try:
        checkpoint = read_checkpoint(PathManager.get_local_path(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return list(checkpoint.get("vis_d2", {}).get("thing_classes", []))


def read_checkpoint(path: str) -> Dict[str, Any]:
    """Read a ``.pth`` file of tensors and plain containers; no code in it is run.

    Raises:
        ValueError: it is damaged, holds other things, or holds no dict.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # whatever the reader trips over: it has no error of its own
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = f"it holds the Python object {found.group(1)}" if found else _one_line(error)
        raise ValueError(
            f"cannot be read as a checkpoint of tensors and plain containers: {why}"
        ) from None
    if not isinstance(loaded, dict):
        raise ValueError(f"expected a checkpoint with a dict, found a {type(loaded).__name__}")
    return loaded


def _one_line(error: Exception) -> str:
    """What an error of another library says, without its line breaks; its type if it says nothing.

    Sentences after the first are advice for programmers.
    """
    return " ".join(str(error).split()).partition(". ")[0] or type(error).__name__


def _key_names(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in cfg.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from _key_names(value, f"{prefix}{key}.")


def _wrong_type_message(
    source: str, wanted: str, found: str, default: str, given: str, key: str
) -> str:
    default, given = (" ".join(text.split())[:80] for text in (default, given))
    what = f"got {found} {given}"
    if wanted.endswith("CfgNode"):
        return f"{key} in {source}: expected keys below it, {what}"
    return f"{key} in {source}: expected {wanted} like {default}, {what}"


def _unknown_key_message(key: str, source: str, known: Iterable[str]) -> str:
    known = list(known)
    last = key.rpartition(".")[2]
    same_name = [name for name in known if name.rpartition(".")[2] == last]
    nearest = difflib.get_close_matches(key, known, n=3)
    candidates = list(dict.fromkeys(nearest + same_name))[:3]
    hint = f"; did you mean {' or '.join(candidates)}?" if candidates else ""
    return f"unknown config key {key} in {source}{hint}"
