"""From the options that every tool takes to a config."""

import argparse
from typing import Any, Mapping, Optional

from detectron2.config import CfgNode, get_cfg

from vis_d2.engine import merge_config
from vis_d2.meta_arch import add_vis_config

from ._options import add_config_arguments

__all__ = ["add_config_arguments", "load_config"]


def load_config(args: argparse.Namespace, defaults: Optional[Mapping[str, Any]] = None) -> CfgNode:
    """Build the config of a command line.

    Args:
        args: parsed with :func:`._options.add_config_arguments`.
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
