"""Which training settings of EfficientVIS fit a GPU: computed on a CPU, not measured on a GPU.

python projects/EfficientVIS/memory.py \\
    --config-file configs/EfficientVIS/efficient_vis_R_50_FPN_ytvis2019.yaml

How, and what is not counted: see ``vis_d2.tools._step_memory``.
"""

from typing import Any, Dict, List, Optional, Tuple

from detectron2.modeling import build_model
from torch import nn

from vis_d2.engine import prepare_config
from vis_d2.tools._config import load_config
from vis_d2.tools._step_memory import make_clip, memory_arguments, report


def make_sample(frames: int, pair: bool, size: Tuple[int, int], objects: int) -> Dict[str, Any]:
    """What ``ClipPair`` gives: two clips of ``frames``, or one and its last frame as the other."""
    sample = make_clip(2 * frames, size, objects)
    if not pair:
        sample["frame_indices"][frames:] = [frames - 1] * frames
    return sample


def set_recompute(model: nn.Module, choice: str) -> None:
    """What ``MODEL.EFFICIENT_VIS.RECOMPUTE`` does, on a model that is there."""
    model.recompute_backbone = choice in ("backbone", "all")
    for stage in model.refiner.stages:
        stage.recompute_masks = choice in ("masks", "all")


def main(argv: Optional[List[str]] = None) -> None:
    """Print the table; see the top of the file."""
    parser = memory_arguments(__doc__, (360, 640), (4, 6, 8))
    pair = "two clips per sample, as of videos longer than T"
    parser.add_argument("--pair", action="store_true", help=pair)
    args = parser.parse_args(argv)
    cfg = load_config(args, {"MODEL.WEIGHTS": "", "MODEL.DEVICE": "cpu"})
    prepare_config(cfg)
    model = build_model(cfg).train()

    def prepare(frames: int, choice: str) -> nn.Module:
        set_recompute(model, choice)
        model.clip_length = frames
        return model

    def make(frames: int) -> Dict[str, Any]:
        return make_sample(frames, args.pair, args.size, args.objects)

    what = "two clips" if args.pair else "one clip"
    for line in report(cfg, cfg.MODEL.EFFICIENT_VIS.RECOMPUTE, args, prepare, make, what):
        print(line, flush=True)


if __name__ == "__main__":
    main()
