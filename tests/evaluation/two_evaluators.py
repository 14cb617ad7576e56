"""Scores the same videos in two processes, one of them given to both, or in one process."""

import json
import sys
from pathlib import Path
from typing import Any, Dict, Sequence

import torch
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from small_files import LEFT, RIGHT, annotation, ground_truth

from vis_d2.evaluation import VISEvaluator
from vis_d2.structures import VideoInstances

MASKS = {1: [LEFT, RIGHT], 2: [RIGHT, LEFT]}


def make_evaluator(folder: Path, output: str) -> VISEvaluator:
    rows = [annotation([LEFT]), annotation([RIGHT], id=2, video=2)]
    gt = ground_truth(rows)
    gt["categories"] = gt["categories"][:1]
    folder.mkdir(exist_ok=True)
    path = folder / f"gt{comm.get_rank()}.json"
    path.write_text(json.dumps(gt))
    metadata = MetadataCatalog.get(f"two_evaluators_{output}")
    metadata.set(json_file=str(path), thing_dataset_id_to_contiguous_id={1: 0})
    evaluator = VISEvaluator(metadata.name, str(folder / output))
    evaluator.reset()
    return evaluator


def process(evaluator: VISEvaluator, videos: Sequence[int]) -> Dict[str, Any]:
    for video in videos:
        masks = [[mask] for mask in MASKS[video]]
        zeros = torch.zeros(2, dtype=torch.int64)
        scores = torch.tensor([0.75, 0.5])
        found = VideoInstances((10, 10), 1, scores, zeros, torch.arange(2), masks)
        evaluator.process([{"video_id": video}], [{"instances": found}])
    return evaluator.evaluate()


def evaluate_in_one(output: Path) -> Dict[str, Any]:
    return process(make_evaluator(output.parent, output.name), [1, 2])


def main(folder: Path, rank: int) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2
    )
    metrics = process(make_evaluator(folder, "out"), [[2], [1, 2]][rank])
    (folder / f"metrics{rank}.json").write_text(json.dumps(metrics))
    # A process that leaves while the other still talks to it aborts now and then.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
