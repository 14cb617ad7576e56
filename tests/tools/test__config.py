import argparse

import pytest

from vis_d2.tools._config import load_config
from vis_d2.tools._options import add_config_arguments


@pytest.fixture
def load(tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text('MODEL:\n  WEIGHTS: "from_file.pth"\n  DEVICE: "cuda"\n')
    parser = argparse.ArgumentParser()
    add_config_arguments(parser)

    def start(*argv, defaults=None, config=path):
        return load_config(parser.parse_args(["--config-file", str(config), *argv]), defaults)

    return start


def test_the_file_the_tool_the_options_and_the_pairs_win_in_this_order(load):
    tool = {"MODEL.WEIGHTS": "", "TEST.VIS.MAX_TRACKS": 50}
    assert load().MODEL.WEIGHTS == "from_file.pth"
    assert load(defaults=tool).MODEL.WEIGHTS == ""
    assert load("--weights", "mine.pth", defaults=tool).MODEL.WEIGHTS == "mine.pth"
    pairs = ["MODEL.WEIGHTS", "last.pth", "TEST.VIS.MAX_TRACKS", "7"]
    cfg = load("--weights", "mine.pth", "--device", "cpu", *pairs, defaults=tool)
    assert (cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE, cfg.TEST.VIS.MAX_TRACKS) == ("last.pth", "cpu", 7)


def test_a_key_that_does_not_exist_gets_the_nearest(load):
    with pytest.raises(KeyError, match="TEST.VIS.MAX_TRACKS"):
        load("TEST.VIS.MAX_TRACK", "7")


def test_a_file_that_does_not_exist(load, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.yaml"):
        load(config=tmp_path / "nothing.yaml")
