"""Worker of test_distributed.py: the gradients of one step, of the share of this process.

torchrun --nproc_per_node 2 two_process.py OUTPUT [QUICK_CONFIG ...]
"""

import argparse
from typing import Any, Dict, List, Sequence, Tuple

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from stand_in import CLASSES, make_cfg, make_clip

from vis_d2 import add_vis_config
from vis_d2.engine.distributed import launch_job, wrap_model
from vis_d2.engine.train_loop import ClipTrainLoop

# Objects of each clip of the joint batch; process r of 2 takes every second clip from r on.
JOINT_BATCHES = {"everywhere": (2, 3, 1, 2), "none in one process": (2, 0, 1, 0)}
Gradients = Dict[str, torch.Tensor]


def quick_cfg(path: str) -> CfgNode:
    cfg = get_cfg()
    add_vis_config(cfg)
    cfg.merge_from_file(path)
    # Batch statistics belong to a process; with them the gradients differ by design.
    fixed = ["MODEL.DEVICE", "cpu", "MODEL.VIS.NUM_CLASSES", len(CLASSES)]
    cfg.merge_from_list([*fixed, "MODEL.RESNETS.NORM", "GN", "MODEL.FPN.NORM", "GN"])
    if "EFFICIENT_VIS" in cfg.MODEL:
        cfg.MODEL.EFFICIENT_VIS.MASK_NORM = "GN"
        # The second clip of a sample learns from the first one from the first iteration on.
        cfg.MODEL.EFFICIENT_VIS.CORRESPONDENCE_FROM = 0
    if cfg.MODEL.META_ARCHITECTURE == "HITF":
        cfg.MODEL.RESNETS.NORM = "FrozenBN"  # too narrow for 32 groups
        cfg.MODEL.HITF.ATTN_NORM = "scaled_ln"
    if cfg.MODEL.META_ARCHITECTURE == "MSSTS":  # learn from the discriminator at once
        cfg.MODEL.MS_STS.ADV.RAMP_ITERS = 0
    if cfg.MODEL.META_ARCHITECTURE == "TTSPN":  # its clips have as many frames as its queries
        cfg.merge_from_list(["INPUT.CLIP.NUM_FRAMES", 2, "TEST.VIS.WINDOW", 2])
    return cfg


def make_clips(objects: Sequence[int], size: Tuple[int, int]) -> List[Dict[str, Any]]:
    return [make_clip(i, n, size) for i, n in enumerate(objects)]


def make_clip_pairs(
    objects: Sequence[int], size: Tuple[int, int], lengths: Sequence[int]
) -> List[Dict[str, Any]]:
    """Samples of two clips of two frames, of videos of these lengths."""
    pairs = []
    for clip, length in zip(make_clips(objects, size), lengths):
        indices = [min(t, length - 1) for t in range(4)]
        doubled = {key: clip[key] * 2 for key in ("image", "instances")}
        pairs.append({**clip, **doubled, "frame_indices": indices})
    return pairs


def one_step(cfg: CfgNode, clips: List[Dict[str, Any]], *, accumulate: int = 1) -> Gradients:
    """Train one step on the share of this process; the gradients of all parameters."""
    torch.manual_seed(comm.get_rank())  # processes must agree on the weights of the first one
    model = build_model(cfg)
    if comm.get_rank() == 0:
        torch.manual_seed(0)
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.05)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    share = clips[comm.get_rank() :: comm.get_world_size()]
    batches = [share[i::accumulate] for i in range(accumulate)]
    wrapped = wrap_model(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loop = ClipTrainLoop(wrapped, batches, optimizer, accumulate=accumulate)
    with EventStorage(0):
        loop.run_step()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def all_cases(quick_configs: List[str]) -> Dict[str, Gradients]:
    stand_in = make_cfg("unused", "MODEL.VIS.NUM_CLASSES", len(CLASSES))
    results = {}
    for name, objects in JOINT_BATCHES.items():
        small, large = make_clips(objects, (16, 22)), make_clips(objects, (64, 96))
        results[f"stand-in, objects {name}"] = one_step(stand_in, small)
        for path in quick_configs:
            results[f"{path}, objects {name}"] = one_step(quick_cfg(path), large)
    for path in clip_pair_configs(quick_configs):
        # Process 1 gets the videos of two frames: nothing is left for their second clips.
        pairs = make_clip_pairs((2, 1), (64, 96), lengths=(4, 2))
        results[f"{path}, no second clip in one process"] = one_step(quick_cfg(path), pairs)
    same = make_clips((2, 2, 2, 2), (16, 22))
    results["accumulated"] = one_step(stand_in, same, accumulate=2)
    return results


def clip_pair_configs(quick_configs: List[str]) -> List[str]:
    """Those that train on two clips of a video."""
    return [path for path in quick_configs if quick_cfg(path).INPUT.CLIP.SAMPLER == "ClipPair"]


def stop_message() -> str:
    """What a process says when the loss of the last process is NaN."""
    cfg = make_cfg("unused", "MODEL.VIS.NUM_CLASSES", len(CLASSES))
    model = build_model(cfg)
    clip = make_clip(0)
    if comm.get_rank() == comm.get_world_size() - 1:
        clip["image"] = [image * float("nan") for image in clip["image"]]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    try:
        ClipTrainLoop(wrap_model(model), [[clip]], optimizer).run_step()
    except FloatingPointError as error:
        return str(error)
    return "did not stop"


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    results = all_cases(args.quick_configs)
    messages = comm.gather(stop_message())
    local = comm.all_gather((comm.get_local_rank(), comm.get_local_size()))
    if comm.is_main_process():
        torch.save({"gradients": results, "messages": messages, "local": local}, args.output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("output")
    parser.add_argument("quick_configs", nargs="*")
    launch_job(main, parser.parse_args())
