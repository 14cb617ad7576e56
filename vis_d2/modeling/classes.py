"""How many classes a model has."""

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

__all__ = ["num_classes"]


def num_classes(cfg: CfgNode) -> int:
    """``MODEL.VIS.NUM_CLASSES``, or where it is -1 the classes of the first data set named.

    Raises:
        ValueError: it is -1 and the config names no data set.
    """
    if cfg.MODEL.VIS.NUM_CLASSES > 0:
        return cfg.MODEL.VIS.NUM_CLASSES
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if not names:
        raise ValueError("MODEL.VIS.NUM_CLASSES is -1 and the config names no data set to ask")
    return len(MetadataCatalog.get(names[0]).thing_classes)
