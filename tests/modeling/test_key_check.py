import math

import pytest
from detectron2.config import CfgNode

from vis_d2.modeling import KeyCheck


def check(**values):
    section = CfgNode({"PART": CfgNode(values), "UNIT": 4, "KIND": "a"})
    return KeyCheck(CfgNode({"MODEL": CfgNode({"NAME": section})}), "MODEL.NAME")


def test_good_values_pass():
    keys = check(NUMBER=8, SHARE=0.5, ONE=1.0, NONE=0.0)
    keys.choices({"KIND": ("a", "b")})
    keys.at_least(8, ["PART.NUMBER"])
    keys.above_zero(["PART.NUMBER", "PART.SHARE"])
    keys.shares(["PART.SHARE", "PART.ONE", "PART.NONE"])
    keys.shares(["PART.SHARE", "PART.NONE"], below_one=True)
    keys.multiples("UNIT", ["PART.NUMBER"])
    keys.expect("KIND", True, "nothing")


@pytest.mark.parametrize(
    "value, run, message",
    [
        (
            7,
            lambda k: k.at_least(8, ["PART.X"]),
            r"MODEL.NAME.PART.X: expected a number from 8, fo",
        ),
        (math.nan, lambda k: k.at_least(0, ["PART.X"]), "expected a number from 0, found nan"),
        (0, lambda k: k.above_zero(["PART.X"]), "expected a number above 0, found 0"),
        (1.5, lambda k: k.shares(["PART.X"]), r"expected a number in \[0, 1\], found 1.5"),
        (1.0, lambda k: k.shares(["PART.X"], below_one=True), "from 0, below 1, found 1.0"),
        (6, lambda k: k.multiples("UNIT", ["PART.X"]), r"a multiple of UNIT \(4\), found 6"),
        (0, lambda k: k.multiples("UNIT", ["PART.X"]), r"a multiple of UNIT \(4\), found 0"),
        ("c", lambda k: k.choices({"PART.X": ("a", "b")}), r"one of \('a', 'b'\), found 'c'"),
        (1, lambda k: k.expect("PART.X", False, "something else"), "X: expected something else, f"),
    ],
)
def test_each_bad_value_is_named(value, run, message):
    with pytest.raises(ValueError, match=message):
        run(check(X=value))


def test_full_names_without_a_section():
    keys = KeyCheck(CfgNode({"TEST": CfgNode({"WINDOW": 3})}), "")
    with pytest.raises(ValueError, match="^TEST.WINDOW: expected 1, found 3$"):
        keys.expect("TEST.WINDOW", False, "1")
