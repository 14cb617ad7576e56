"""What it is worth that a clip hands its queries on, and that the model has learned to.

python projects/EfficientVIS/handover.py --config-file configs/quick/efficient_vis.yaml \
    --output output/handover [--seeds 0 1 2] [KEY VALUE ...]

For every seed two models learn from the same pairs of clips for the same number of iterations:
one with correspondence learning, one that learns every clip by itself. Both are then evaluated
with queries that go on from clip to clip, and with clips that are linked by hand-crafted rules, at
several score thresholds. What is finished is not done again: an interrupted command goes on where
it stopped.
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.logger import setup_logger

from vis_d2 import VISTrainer
from vis_d2.engine import build_checkpointer, prepare_config
from vis_d2.engine.manifest import file_checksum
from vis_d2.tools._config import load_config
from vis_d2.tools._options import add_config_arguments

METRICS = ("AP", "AP50", "AP75", "AR1", "AR10")
SCORES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5)

Metrics = Dict[str, float]


class Setting(NamedTuple):
    """One way to train and to evaluate.

    Attributes:
        correspondence: trained with correspondence learning.
        link: "query" or "handcraft", what says who is who from clip to clip.
        score: slots below it are not linked; None where nothing is linked.
    """

    correspondence: bool
    link: str
    score: Optional[float] = None

    @property
    def learned(self) -> str:
        """Name of the training."""
        return "with" if self.correspondence else "without"


class Row(NamedTuple):
    """A setting and its metrics by seed."""

    setting: Setting
    seeds: Dict[int, Metrics]

    def mean(self, metric: str) -> float:
        """Over the seeds."""
        return mean(metrics[metric] for metrics in self.seeds.values())


def training_config(args: argparse.Namespace, seed: int, setting: Setting) -> CfgNode:
    """The settled config of one training."""
    cfg = load_config(args)
    cfg.SEED = seed
    cfg.OUTPUT_DIR = str(Path(args.output) / f"seed_{seed}" / setting.learned)
    cfg.MODEL.EFFICIENT_VIS.CORRESPONDENCE = setting.correspondence
    cfg.MODEL.EFFICIENT_VIS.LINK = "query"
    if len(cfg.DATASETS.TEST) != 1:
        raise ValueError(f"DATASETS.TEST: expected one data set, found {cfg.DATASETS.TEST}")
    prepare_config(cfg)
    cfg.freeze()
    return cfg


def train(cfg: CfgNode) -> str:
    """Train, or go on with a training, unless it is finished; the path of the weights."""
    folder = Path(cfg.OUTPUT_DIR)
    weights, manifest = folder / "model_final.pth", folder / "manifest.json"
    if manifest.is_file():
        _check_same_run(cfg, json.loads(manifest.read_text(encoding="utf8"))["config"])
    if not (manifest.is_file() and weights.is_file()):
        trainer = VISTrainer(cfg)
        trainer.resume_or_load(resume=True)
        trainer.train()
    return str(weights)


def _check_same_run(cfg: CfgNode, recorded: str) -> None:
    now, then = _flat(yaml.safe_load(cfg.dump())), _flat(yaml.safe_load(recorded))
    differing = [key for key in now if key in then and now[key] != then[key]]
    if differing:
        raise ValueError(
            f"{cfg.OUTPUT_DIR} holds a training with another {', '.join(differing)}; remove it "
            "or choose another --output"
        )


def _flat(node: Dict[str, Any], prefix: str = "") -> Dict[str, Any]:
    flat = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        elif key != "OUTPUT_DIR":  # the same folder by another name
            flat[prefix + key] = value
    return flat


def evaluate(cfg: CfgNode, weights: str, setting: Setting) -> Metrics:
    """Metrics in percent on the config's test set; kept in a file beside the weights."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.EFFICIENT_VIS.LINK = setting.link
    name = setting.link
    if setting.score is not None:
        cfg.MODEL.EFFICIENT_VIS.LINK_SCORE = setting.score
        name += f"_{setting.score:g}"
    cfg.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR) / name)
    cfg.freeze()
    made_of = {"weights_sha256": file_checksum(weights), "config": cfg.dump()}
    kept = Path(cfg.OUTPUT_DIR) / "metrics.json"
    if kept.is_file():
        content = json.loads(kept.read_text(encoding="utf8"))
        if all(content.get(key) == value for key, value in made_of.items()):
            return content["metrics"]
    model = build_model(cfg).eval()
    build_checkpointer(cfg, model).load(weights)
    found = VISTrainer.test(cfg, model)["segm"]
    metrics = {metric: round(found[metric], 3) for metric in METRICS}
    kept.write_text(json.dumps({**made_of, "metrics": metrics}, indent=2), encoding="utf8")
    return metrics


def run_seed(
    args: argparse.Namespace, seed: int, settings: Sequence[Setting]
) -> Dict[Setting, Metrics]:
    """Train and evaluate everything with one seed."""
    trained = {}
    for correspondence in (True, False):
        cfg = training_config(args, seed, Setting(correspondence, "query"))
        trained[correspondence] = (cfg, train(cfg))
    return {setting: evaluate(*trained[setting.correspondence], setting) for setting in settings}


def best_rows(rows: Sequence[Row]) -> List[Row]:
    """Query hand-over, and of the hand-crafted links the threshold with the best mean AP."""
    chosen = [row for row in rows if row.setting.link == "query"]
    for correspondence in (False, True):
        linked = [
            row
            for row in rows
            if row.setting.link == "handcraft" and row.setting.correspondence == correspondence
        ]
        if linked:
            chosen.append(max(linked, key=lambda row: row.mean("AP")))
    return chosen


def table(rows: Sequence[Row]) -> str:
    """The comparison, and all thresholds of the hand-crafted links, in Markdown."""
    seeds = " / ".join(str(seed) for seed in rows[0].seeds)
    head = ["correspondence learning", "clip to clip", f"AP of seeds {seeds}"]
    head += [f"mean {metric}" for metric in METRICS]
    lines = _markdown(head, [_cells(row) for row in best_rows(rows)])
    linked = [row for row in rows if row.setting.link == "handcraft"]
    if linked:
        lines += ["", "Hand-crafted links at every score threshold:", ""]
        lines += _markdown(head, [_cells(row) for row in linked])
    return "\n".join(lines)


def _cells(row: Row) -> List[str]:
    way = "query" if row.setting.link == "query" else f"links, score >= {row.setting.score:g}"
    each = " / ".join(f"{metrics['AP']:.1f}" for metrics in row.seeds.values())
    return [row.setting.learned, way, each] + [f"{row.mean(metric):.1f}" for metric in METRICS]


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> List[str]:
    body = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in body]


def write(args: argparse.Namespace, rows: Sequence[Row]) -> None:
    """``handover.md`` and ``handover.json`` in the output folder."""
    content = {
        "config": args.config_file,
        "opts": args.opts,
        "rows": [
            {
                "correspondence": row.setting.correspondence,
                "link": row.setting.link,
                "score": row.setting.score,
                "seeds": row.seeds,
                "mean": {metric: round(row.mean(metric), 3) for metric in METRICS},
            }
            for row in rows
        ],
    }
    folder = Path(args.output)
    (folder / "handover.json").write_text(json.dumps(content, indent=2), encoding="utf8")
    (folder / "handover.md").write_text(table(rows) + "\n", encoding="utf8")


def main(argv: Optional[List[str]] = None) -> None:
    """Train, evaluate, print the tables; see the top of the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", required=True, metavar="DIR", help="folder of the trainings and tables")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(0 1 2)")
    add("--scores", type=float, nargs="*", default=SCORES, help="thresholds of LINK_SCORE")
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    Path(args.output).mkdir(parents=True, exist_ok=True)
    setup_logger(args.output, name="vis_d2")
    settings = [Setting(True, "query"), Setting(False, "query")]
    settings += [Setting(c, "handcraft", score) for c in (False, True) for score in args.scores]
    rows = [Row(setting, {}) for setting in settings]
    for seed in args.seeds:
        for setting, metrics in run_seed(args, seed, settings).items():
            next(row for row in rows if row.setting == setting).seeds[seed] = metrics
        write(args, rows)  # an interrupted command leaves the seeds that are finished
    print(table(rows))


if __name__ == "__main__":
    main()
