"""Weights to pass on: without the discriminator, optimizer, schedule and random numbers of a run.

python projects/MS-STS/export_weights.py output/model_final.pth --output ms_sts.pth

The new file knows its classes, as the checkpoint does, and loads wherever that one loads:
MODEL.MS_STS.ADV.ENABLED says whether a model has a discriminator, not its weights.
"""

import argparse
import os
from typing import Dict, List, Optional

import torch
from torch import Tensor

from vis_d2.engine.setup import read_checkpoint

TRAINING_ONLY = "discriminator."


def strip_discriminator(state: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """The tensors that inference needs, by their names."""
    return {key: value for key, value in state.items() if not key.startswith(TRAINING_ONLY)}


def export(path: str, output: str) -> List[str]:
    """Write ``output``, and return what there is to say about it, as lines.

    Args:
        path: a checkpoint of this system (.pth).
        output: path of the new file.

    Raises:
        ValueError: it cannot be read, or is of another system.
    """
    checkpoint = read_checkpoint(path)
    identity = checkpoint.get("vis_d2", {})
    found = identity.get("meta_architecture", "a file that does not say of what model it is")
    if found != "MSSTS" or "model" not in checkpoint:
        raise ValueError(f"{path}: expected a checkpoint of MSSTS, found {found}")
    kept = strip_discriminator(checkpoint["model"])
    os.makedirs(os.path.dirname(output) or ".", exist_ok=True)
    torch.save({"model": kept, "vis_d2": identity}, output)
    others = sorted(set(checkpoint) - {"model", "vis_d2"})
    return [
        f"{path}: kept {len(kept)} tensors, left out {len(checkpoint['model']) - len(kept)} of the"
        f" discriminator, and {', '.join(others) or 'nothing else'}",
        f"wrote {output}, {os.path.getsize(output) / 2**20:.1f} MiB",
    ]


def main(argv: Optional[List[str]] = None) -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", metavar="CHECKPOINT", help="a checkpoint of a training, .pth")
    parser.add_argument("--output", required=True, metavar="PTH", help="the new file")
    args = parser.parse_args(argv)
    print("\n".join(export(args.path, args.output)))


if __name__ == "__main__":
    main()
