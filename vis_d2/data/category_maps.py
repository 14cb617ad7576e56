"""Which class of one public data set is which class of another. Data, and one look-up.

A class goes to the class that contains it: an eagle is a bird, but a bird need not be an eagle.
What has no such class in the other data set is left out.
"""

from typing import Dict, FrozenSet, Mapping, Tuple

from .datasets.categories import (
    COCO_TO_YTVIS_2019,
    COCO_TO_YTVIS_2021,
    OVIS,
    YTVIS_2019,
    YTVIS_2021,
)

__all__ = ["COCO", "DATA_SETS", "MAP_NAMES", "name_map", "normalized"]

# fmt: off
COCO: Dict[int, str] = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train",
    8: "truck", 9: "boat", 10: "traffic light", 11: "fire hydrant", 13: "stop sign",
    14: "parking meter", 15: "bench", 16: "bird", 17: "cat", 18: "dog", 19: "horse", 20: "sheep",
    21: "cow", 22: "elephant", 23: "bear", 24: "zebra", 25: "giraffe", 27: "backpack",
    28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35: "skis",
    36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat", 40: "baseball glove",
    41: "skateboard", 42: "surfboard", 43: "tennis racket", 44: "bottle", 46: "wine glass",
    47: "cup", 48: "fork", 49: "knife", 50: "spoon", 51: "bowl", 52: "banana", 53: "apple",
    54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot", 58: "hot dog", 59: "pizza",
    60: "donut", 61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed",
    67: "dining table", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75: "remote",
    76: "keyboard", 77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster", 81: "sink",
    82: "refrigerator", 84: "book", 85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear",
    89: "hair drier", 90: "toothbrush",
}

# short name -> category id -> category name
DATA_SETS: Dict[str, Mapping[int, str]] = {
    "coco": COCO,
    "ytvis2019": dict(enumerate(YTVIS_2019, start=1)),
    "ytvis2021": dict(enumerate(YTVIS_2021, start=1)),
    "ovis": dict(enumerate(OVIS, start=1)),
}

# (from, to) -> classes whose counterpart has another name; equal names need no entry.
_RENAMED: Dict[Tuple[str, str], Dict[str, str]] = {
    ("ytvis2019", "ytvis2021"): {
        "sedan": "car", "ape": "monkey", "eagle": "bird", "owl": "bird",
    },
    ("ytvis2021", "ytvis2019"): {"car": "sedan"},
    ("ytvis2019", "ovis"): {
        "sedan": "Vehical", "truck": "Vehical", "motorbike": "Motorcycle", "ape": "Monkey",
        "duck": "Poultry", "eagle": "Bird", "owl": "Bird",
    },
    ("ytvis2021", "ovis"): {
        "car": "Vehical", "truck": "Vehical", "motorbike": "Motorcycle", "duck": "Poultry",
    },
    ("ovis", "ytvis2019"): {"Motorcycle": "motorbike"},
    ("ovis", "ytvis2021"): {"Motorcycle": "motorbike", "Poultry": "bird"},
    ("coco", "ovis"): {"car": "Vehical", "bus": "Vehical", "truck": "Vehical"},
    ("ovis", "coco"): {"Parrot": "bird", "Poultry": "bird"},
    ("ytvis2019", "coco"): {
        "sedan": "car", "motorbike": "motorcycle", "parrot": "bird", "duck": "bird",
        "eagle": "bird", "owl": "bird",
    },
    ("ytvis2021", "coco"): {
        "motorbike": "motorcycle", "parrot": "bird", "duck": "bird", "flying_disc": "frisbee",
    },
}

# The one name that means two things: COCO's mouse lies beside a keyboard.
_APART: FrozenSet[str] = frozenset({"mouse"})

# These two are older than the rule above: skis have become snowboards and bicycles motorbikes in
# everybody's joint training.
_BY_ID: Dict[Tuple[str, str], Dict[int, int]] = {
    ("coco", "ytvis2019"): COCO_TO_YTVIS_2019,
    ("coco", "ytvis2021"): COCO_TO_YTVIS_2021,
}
# fmt: on

MAP_NAMES: Tuple[str, ...] = tuple(
    f"{source}-to-{target}" for source in DATA_SETS for target in DATA_SETS if source != target
)


def normalized(name: str) -> str:
    """A category name without case and without the many ways to separate words."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def name_map(source: str, target: str) -> Dict[str, str]:
    """Class of ``source`` -> class of ``target``, both by name; classes without one are absent.

    Names, because files number their classes as they like: the same class has another id in each
    edition of YouTube-VIS.

    Args:
        source: a key of ``DATA_SETS``.
        target: another one.
    """
    given, wanted = DATA_SETS[source], DATA_SETS[target]
    if (source, target) in _BY_ID:
        return {given[i]: wanted[j] for i, j in _BY_ID[source, target].items()}
    equal = {normalized(name): name for name in wanted.values()}
    if "coco" in (source, target):
        equal = {key: name for key, name in equal.items() if key not in _APART}
    pairs = {name: equal.get(normalized(name)) for name in given.values()}
    pairs.update(_RENAMED.get((source, target), {}))
    return {name: found for name, found in pairs.items() if found is not None}
