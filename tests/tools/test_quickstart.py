import json

import av
import pytest

from vis_d2.data.datasets.toy import write_toy
from vis_d2.tools import quickstart


@pytest.fixture
def small_toy(tmp_path, monkeypatch):
    write_toy(tmp_path / "datasets" / "toy", videos={"train": 2, "val": 1})
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))


def test_trains_evaluates_draws_and_goes_on_where_it_stopped(small_toy, tmp_path, capsys):
    output = tmp_path / "out"
    command = ["--config-file", "configs/quick/sg_net.yaml", "--output", str(output)]
    command += ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "1"]
    assert quickstart.main(command) == 0
    printed = capsys.readouterr().out
    assert "| AP " in printed.replace("   ", " ").replace("  ", " ")
    for path in (
        "demo/annotated.mp4",
        "demo/contact_sheet.png",
        "inference/ytvis_toy_val/results.json",
        "training_curve.png",
    ):
        assert str(output / path) in printed
        assert (output / path).stat().st_size > 0
    with av.open(str(output / "demo" / "annotated.mp4")) as video:
        assert video.streams.video[0].codec_context.name == "h264"
    lines = (output / "metrics.json").read_text().splitlines()
    assert json.loads(lines[-1])["iteration"] == 2

    weights = output / "model_final.pth"
    before = weights.stat().st_mtime_ns
    assert quickstart.main(command) == 0
    assert weights.stat().st_mtime_ns == before, "a complete training is not repeated"
