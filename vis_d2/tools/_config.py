"""From the options that every tool takes to a config."""

import argparse
from typing import Any, Mapping, Optional

from detectron2.config import CfgNode, get_cfg

from vis_d2.engine import merge_config
from vis_d2.meta_arch import add_vis_config


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--config-file``, ``--weights``, ``--device`` and the trailing ``KEY VALUE`` pairs."""
    parser.add_argument("--config-file", required=True, metavar="YAML", help="config of the model")
    parser.add_argument("--weights", metavar="PTH", help="checkpoint (default: MODEL.WEIGHTS)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 … (default: MODEL.DEVICE)")
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config keys that override the file, at the end of the line",
    )


def load_config(args: argparse.Namespace, defaults: Optional[Mapping[str, Any]] = None) -> CfgNode:
    """Build the config of a command line.

    Args:
        args: parsed with :func:`add_config_arguments`.
        defaults: config keys that the tool sets; ``KEY VALUE`` pairs of the command line win.

    Raises:
        FileNotFoundError: no such config file.
        KeyError: no such key; names the nearest.
    """
    opts = [str(item) for pair in (defaults or {}).items() for item in pair]
    if args.weights is not None:
        opts += ["MODEL.WEIGHTS", args.weights]
    if args.device is not None:
        opts += ["MODEL.DEVICE", args.device]
    cfg = get_cfg()
    add_vis_config(cfg)
    merge_config(cfg, args.config_file, opts + args.opts)
    return cfg
