"""How much systems lose when they see every n-th frame only.

python projects/EfficientVIS/frame_rate.py --every 4 --output output/frame_rate \
    --run configs/quick/efficient_vis.yaml output/quick/efficient_vis/model_final.pth \
    --run configs/quick/sg_net.yaml output/quick/sg_net/model_final.pth [KEY VALUE ...]

Every system is evaluated on the test set of its config as it is, and on a copy of which each video
and each track keeps the frames 0, n, 2n ... The model is not told: a clip of T frames is then T
frames of the shortened video. KEY VALUE pairs hold for all runs. Several runs of one config, its
seeds for instance, also get a mean.
"""

import argparse
import json
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any, Dict, Iterator, List, Optional, Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.logger import setup_logger

from vis_d2 import VISTrainer
from vis_d2.data import register_ytvis_instances
from vis_d2.data.annotation_file import pack_runs, read_annotations
from vis_d2.engine import build_checkpointer, prepare_config
from vis_d2.tools._config import load_config

PER_FRAME = ("file_names", "segmentations", "bboxes", "areas", "occlusion")


def thin_out(content: Dict[str, Any], every: int) -> Dict[str, Any]:
    """A YouTube-VIS file with every n-th frame of each video.

    Masks, boxes and areas are those of the frames that stay. A track without a mask in any of them
    is left out.

    Args:
        content: what the file holds.
        every: n >= 1.

    Raises:
        ValueError: the file has no annotations, so there is nothing to compare.
    """
    if not content.get("annotations"):
        raise ValueError("the test set has no annotations: there is no AP to compare")
    lengths = {video["id"]: len(video["file_names"]) for video in content["videos"]}
    videos = [_thin(video, lengths[video["id"]], every) for video in content["videos"]]
    tracks = [_thin(t, lengths[t["video_id"]], every) for t in content["annotations"]]
    seen = [track for track in tracks if any(track["segmentations"])]
    return {**content, "videos": videos, "annotations": seen}


def _thin(entry: Dict[str, Any], length: int, every: int) -> Dict[str, Any]:
    thin = {
        key: value[::every] if key in PER_FRAME and value is not None else value
        for key, value in entry.items()
    }
    if "length" in thin:
        thin["length"] = len(range(0, length, every))
    return thin


@contextmanager
def thinned_dataset(name: str, every: int, folder: Path) -> Iterator[str]:
    """Write and register the copy of a data set; gives its name."""
    metadata = MetadataCatalog.get(name)
    content = thin_out(read_annotations(metadata.json_file, pack_runs), every)
    thinned = f"{name}_every_{every}"
    path = folder / f"{thinned}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, default=lambda array: array.tolist()), encoding="utf8")
    register_ytvis_instances(thinned, str(path), metadata.image_root)
    try:
        yield thinned
    finally:
        DatasetCatalog.remove(thinned)
        MetadataCatalog.remove(thinned)


def evaluate(cfg: CfgNode, dataset: str) -> Dict[str, float]:
    """AP in percent of the weights of ``cfg`` on a data set."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = (dataset,)
    cfg.freeze()
    model = build_model(cfg).eval()
    build_checkpointer(cfg, model).load(cfg.MODEL.WEIGHTS)
    found = VISTrainer.test(cfg, model)["segm"]
    return {metric: round(found[metric], 3) for metric in ("AP", "AP50", "AP75", "AR10")}


def run(args: argparse.Namespace, number: int) -> Dict[str, Any]:
    """Evaluate one system at both frame rates: a row of the table."""
    config_file, weights = args.run[number]
    args = argparse.Namespace(**{**vars(args), "config_file": config_file, "weights": weights})
    cfg = load_config(args)
    cfg.OUTPUT_DIR = str(Path(args.output) / f"{number}_{Path(config_file).stem}")
    if len(cfg.DATASETS.TEST) != 1:
        raise ValueError(f"{config_file}: expected one test set, found {cfg.DATASETS.TEST}")
    (name,) = cfg.DATASETS.TEST
    prepare_config(cfg)
    cfg.freeze()
    with thinned_dataset(name, args.every, Path(cfg.OUTPUT_DIR)) as thinned:
        full, part = evaluate(cfg, name), evaluate(cfg, thinned)
    return {
        "system": cfg.MODEL.META_ARCHITECTURE,
        "config": config_file,
        "weights": weights,
        "dataset": name,
        "window": cfg.TEST.VIS.WINDOW,
        "every": args.every,
        "full": full,
        "thinned": part,
    }


def table(rows: Sequence[Dict[str, Any]], every: int) -> str:
    """Rows in Markdown, and the mean of several runs of one config."""
    head = ["system", "weights", "AP, all frames", f"AP, every {every}.", "drop"]
    lines = [head, ["---"] * len(head)]
    for config in dict.fromkeys(row["config"] for row in rows):
        group = [row for row in rows if row["config"] == config]
        pairs = [(row["full"]["AP"], row["thinned"]["AP"]) for row in group]
        names = [row["weights"] for row in group]
        if len(group) > 1:
            names.append(f"mean of {len(group)}")
            pairs.append((mean(a for a, _ in pairs), mean(b for _, b in pairs)))
        for name, (full, thinned) in zip(names, pairs):
            figures = [f"{value:.1f}" for value in (full, thinned, full - thinned)]
            lines.append([f"{group[0]['system']} ({Path(config).stem})", name, *figures])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def main(argv: Optional[List[str]] = None) -> None:
    """Evaluate all runs, print the table; see the top of the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--every", type=int, default=4, metavar="N", help="frames kept: one of N (%(default)s)")
    add(
        "--run",
        nargs=2,
        action="append",
        required=True,
        metavar=("CONFIG", "WEIGHTS"),
        help="a system; may be given several times",
    )
    add("--output", default="output/frame_rate", metavar="DIR", help="(%(default)s)")
    add("--device", help="cpu, cuda, cuda:1 … (default: MODEL.DEVICE)")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys of all runs")
    args = parser.parse_args(argv)
    if args.every < 1:
        parser.error(f"--every: expected a number of at least 1, found {args.every}")
    setup_logger(name="vis_d2")
    rows = [run(args, number) for number in range(len(args.run))]
    Path(args.output, "frame_rate.json").write_text(json.dumps(rows, indent=2), encoding="utf8")
    print(table(rows, args.every))


if __name__ == "__main__":
    main()
