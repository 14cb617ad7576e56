"""Train on the toy data set, evaluate, and draw a video: the whole product in minutes."""

import json
import math
from pathlib import Path
from typing import Any, Dict, List, Optional

from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.utils.logger import setup_logger
from tabulate import tabulate

from vis_d2.engine import VISTrainer, merge_config
from vis_d2.meta_arch import add_vis_config

from . import demo
from ._options import quickstart_parser

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10")


def main(argv: Optional[List[str]] = None) -> int:
    """Run the quick start; see ``vis-d2 quickstart --help``.

    A run that was interrupted goes on where it stopped; one that is complete is only evaluated and
    drawn again.
    """
    args = quickstart_parser().parse_args(argv)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    setup_logger(str(output / "log.txt"))
    setup_logger(str(output / "log.txt"), name="vis_d2")
    opts = ["OUTPUT_DIR", str(output), *args.opts]
    cfg = get_cfg()
    add_vis_config(cfg)
    merge_config(cfg, args.config_file, opts)
    results = _train(cfg)
    video = _draw(cfg, args.config_file, opts, args.video)
    _report(cfg, results["segm"], video)
    return 0


def _train(cfg: CfgNode) -> Dict[str, Any]:
    trainer = VISTrainer(cfg)
    trainer.resume_or_load(resume=True)
    if trainer.start_iter < trainer.max_iter:
        return trainer.train()
    return VISTrainer.test(trainer.cfg, trainer.model, resume=True)


def _draw(cfg: CfgNode, config_file: str, opts: List[str], index: int) -> Path:
    """Run the demo on one validation video as on any folder of frames."""
    video = DatasetCatalog.get(cfg.DATASETS.TEST[0])[index]
    path = Path(cfg.OUTPUT_DIR, "demo", "annotated.mp4")
    weights = str(Path(cfg.OUTPUT_DIR, "model_final.pth"))
    folder = str(Path(video["file_names"][0]).parent)
    command = ["--config-file", config_file, "--weights", weights, "--input", folder]
    demo.main([*command, "--output", str(path), "--fps", "8", *opts])
    return path


def _report(cfg: CfgNode, metrics: Dict[str, float], video: Path) -> None:
    output = Path(cfg.OUTPUT_DIR)
    (output / "metrics_final.json").write_text(json.dumps(metrics, indent=2))
    # nan: no object of that size
    rows = [["-" if math.isnan(metrics[k]) else f"{metrics[k]:.1f}" for k in METRICS]]
    print(f"\nAverage precision of tracks on {cfg.DATASETS.TEST[0]}, in percent:")
    print(tabulate(rows, headers=METRICS, tablefmt="github"))
    print(f"\nvideo           {video}")
    print(f"contact sheet   {video.parent / 'contact_sheet.png'}")
    print(f"results         {output / 'inference' / cfg.DATASETS.TEST[0] / 'results.json'}")
    print(f"training curve  {output / 'training_curve.png'}")
