"""Train or evaluate a model from a config.

python train_net.py --config-file configs/quick/sg_net.yaml
python train_net.py --config-file ... --num-gpus 8
torchrun --nproc_per_node 8 train_net.py --config-file ...
python train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth
python train_net.py --config-file ... --eval-only --resume MODEL.WEIGHTS output/model_final.pth

--resume continues a training, or an evaluation that was interrupted, where it stopped.
"""

import argparse
from typing import Any, Dict, Optional

from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from vis_d2 import VISTrainer, add_vis_config
from vis_d2.engine import build_checkpointer, launch_job, merge_config, setup_job


def setup(args: argparse.Namespace) -> CfgNode:
    """The frozen config of a command line, with logs started and the process seeded."""
    cfg = get_cfg()
    add_vis_config(cfg)
    merge_config(cfg, args.config_file, args.opts)
    setup_job(cfg, args)
    return cfg


def evaluate(cfg: CfgNode, resume: bool, named: bool) -> Dict[str, Any]:
    """Evaluate a model.

    Args:
        cfg: the config.
        resume: leave out the videos that an interrupted evaluation of the same has finished.
        named: the command line gives ``MODEL.WEIGHTS``. If not, ``resume`` also means the last
            checkpoint of ``OUTPUT_DIR``.
    """
    if not (cfg.MODEL.WEIGHTS or resume):
        raise ValueError("--eval-only needs MODEL.WEIGHTS, or --resume for the last checkpoint")
    model = VISTrainer.build_model(cfg)
    checkpointer = build_checkpointer(cfg, model, cfg.OUTPUT_DIR)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume and not named)
    results = VISTrainer.test(cfg, model, resume=resume)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def main(args: argparse.Namespace) -> Optional[Dict[str, Any]]:
    """One process of a job: train (and evaluate), or evaluate only."""
    cfg = setup(args)
    if args.eval_only:
        return evaluate(cfg, args.resume, "MODEL.WEIGHTS" in args.opts[::2])
    trainer = VISTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    arguments = default_argument_parser().parse_args()
    launch_job(main, arguments)
