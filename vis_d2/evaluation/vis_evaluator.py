"""Scores a model on a data set of videos, inside detectron2's evaluation loop."""

import itertools
import json
import logging
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, FrozenSet, List, Mapping, Optional, Sequence

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from .partial import partial_path, read_partial, remove_partial
from .report import in_percent, metrics_table
from .results import (
    RESULTS_NAME,
    check_results,
    read_json,
    to_results,
    write_results,
    write_zip,
)
from .video_coco_eval import METRICS, VideoCOCOeval, missing_annotations

logger = logging.getLogger(__name__)

ZIP_NAME = "results.zip"
Entries = List[Dict[str, Any]]


class VISEvaluator(DatasetEvaluator):
    """YouTube-VIS average precision of a model.

    Takes the results of each video as run lengths, so memory does not depend on the size of the
    frames. The ground truth is the data set's JSON file; without annotations in it, results are
    written and no AP is given. Until then the results of every finished video are in
    ``results.partial.<process>.jsonl``, one line each: what ends an evaluation early, a broken
    frame say, costs none of them, and :meth:`resume` takes them up again.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: Optional[str] = None,
        distributed: bool = True,
        *,
        mode: str = "strict",
        identity: str = "",
    ) -> None:
        """
        Args:
            dataset_name: a registered data set; its metadata has ``json_file`` and
                ``thing_dataset_id_to_contiguous_id``.
            output_dir: where ``results.json`` and ``results.zip`` are written; None writes nothing.
            distributed: collect the results of all processes in the main one.
            mode: of :class:`VideoCOCOeval`, "strict" or "official".
            identity: of weights, config and data; only results of the same are taken up again.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self._name = dataset_name
        self._json_file = metadata.json_file
        self._dataset_ids = {
            contiguous: id_
            for id_, contiguous in metadata.thing_dataset_id_to_contiguous_id.items()
        }
        self._output_dir = output_dir
        self._distributed = distributed
        self._mode = mode
        self._identity = identity
        self._results: Dict[int, Entries] = {}
        self._resumed = False

    def reset(self) -> None:
        if self._resumed:  # once: the next evaluation with this object is another one
            self._resumed = False
            return
        self._results = {}
        self._remove_partial()

    def resume(self) -> FrozenSet[int]:
        """Take up what an evaluation with the same identity had finished when it was ended.

        For use before the evaluation loop, which then needs to be given the other videos only; its
        ``reset`` keeps what was taken up. With several processes all of them call this.

        Returns:
            Ids of the finished videos.
        """
        self._results = read_partial(self._output_dir, self._identity)
        finished = frozenset(self._results)
        if self._distributed:
            comm.synchronize()  # nobody may still be reading what is written now
        if not comm.is_main_process():
            self._results = {}
        elif self._output_dir is not None:
            remove_partial(self._output_dir)
            for video_id, entries in self._results.items():
                self._append_partial(video_id, entries)
        if self._distributed:
            comm.synchronize()
        self._resumed = True
        return finished

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Keep the results of some videos.

        Args:
            inputs: video dicts; ``video_id`` is read.
            outputs: for each, ``{"instances": VideoInstances}``.
        """
        for video, output in zip(inputs, outputs):
            entries = to_results(video["video_id"], output["instances"], self._dataset_ids)
            # A sampler that pads gives a video twice; the first result stands.
            if video["video_id"] not in self._results:
                self._results[video["video_id"]] = entries
                self._append_partial(video["video_id"], entries)

    def evaluate(self) -> Dict[str, Dict[str, float]]:
        """Write the results and score them.

        Returns:
            In the main process ``{"segm": {...}}`` in percent, nan where undefined: ``AP``,
            ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl``, ``AR1``, ``AR10``, ``AR100`` and
            ``AP-<class>``. In the others, and where there is no ground truth, an empty dict.

        Raises:
            ValueError: the results or the ground truth are malformed (strict mode). The results
                have been written by then.
        """
        entries = self._gather()
        if not comm.is_main_process():
            self._remove_partial()
            return {}
        where = self._write(entries)
        if self._output_dir is not None:
            remove_partial(self._output_dir)
        gt = read_json(self._json_file)
        missing = missing_annotations(gt)
        if missing:
            logger.warning("No AP for %s: %s: %s. %s", self._name, self._json_file, missing, where)
            self._warn_of_faults(entries, gt)
            return {}
        evaluation = VideoCOCOeval(gt, entries, mode=self._mode)
        metrics = evaluation.run()
        logger.info("%s\n%s", self._name, metrics_table(metrics, evaluation.categories))
        result = OrderedDict((name, in_percent(metrics[name])) for name in METRICS[:9])
        for category, ap in metrics["per_category_AP"].items():
            result[f"AP-{evaluation.categories[category]}"] = in_percent(ap)
        return OrderedDict(segm=result)

    def _gather(self) -> Entries:
        """The entries of all processes ordered by video, so that their number changes nothing."""
        parts = [self._results]
        if self._distributed:
            comm.synchronize()
            parts = comm.gather(self._results, dst=0)
        merged: Dict[int, Entries] = {}
        for part in parts:
            for video_id, entries in part.items():
                merged.setdefault(video_id, entries)
        return list(itertools.chain.from_iterable(merged[video_id] for video_id in sorted(merged)))

    def _partial_path(self) -> Optional[str]:
        if self._output_dir is None:
            return None
        return str(partial_path(self._output_dir, comm.get_rank()))

    def _append_partial(self, video_id: int, entries: Entries) -> None:
        path = self._partial_path()
        if path is not None:
            os.makedirs(self._output_dir, exist_ok=True)
            line = {"identity": self._identity, "video_id": video_id, "results": entries}
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _remove_partial(self) -> None:
        path = self._partial_path()
        if path is not None:
            Path(path).unlink(missing_ok=True)

    def _warn_of_faults(self, entries: Entries, gt: Mapping[str, Any]) -> None:
        category_ids = [category["id"] for category in gt.get("categories") or ()]
        faults = check_results(entries, gt.get("videos") or (), category_ids)
        if faults:
            logger.warning("A server would refuse %d results; first %s", len(faults), faults[0])

    def _write(self, entries: Entries) -> str:
        """Returns where the results are, as a sentence."""
        if self._output_dir is None:
            return "Results are kept only with an output folder."
        os.makedirs(self._output_dir, exist_ok=True)
        path = os.path.join(self._output_dir, RESULTS_NAME)
        zip_path = os.path.join(self._output_dir, ZIP_NAME)
        write_results(entries, path)
        write_zip(path, zip_path)
        where = f"{len(entries)} results are in {path} and, zipped for a server, {zip_path}."
        logger.info(where)
        return where
