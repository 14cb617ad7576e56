import json
from pathlib import Path
from typing import Any, Dict, List

import pytest
from PIL import Image

from vis_d2.engine import plot_metrics
from vis_d2.engine.curves import _read_records, set_metrics_aside


def write(folder: Path, records: List[Dict[str, Any]]) -> None:
    lines = [json.dumps(record) for record in records]
    (folder / "metrics.json").write_text("\n".join(lines) + "\n")


def test_losses_rate_and_scores_are_drawn(tmp_path: Path) -> None:
    losses = [{"iteration": i, "total_loss": 3.0 - i, "loss_a": 1.0, "lr": 0.1} for i in range(3)]
    write(tmp_path, losses)
    plain = Image.open(plot_metrics(str(tmp_path))).convert("RGB").tobytes()
    write(tmp_path, losses + [{"iteration": 2, "segm/AP": 12.0, "segm/AP50": 30.0}])
    scored = Image.open(tmp_path / "training_curve.png").convert("RGB")
    assert scored.tobytes() == plain
    scored = Image.open(plot_metrics(str(tmp_path))).convert("RGB")
    assert scored.size[0] >= 600 and scored.tobytes() != plain


def test_a_resumed_run_replaces_what_it_repeats(tmp_path: Path) -> None:
    write(tmp_path, [{"iteration": i, "total_loss": 9.0} for i in (1, 3, 5)])
    with (tmp_path / "metrics.json").open("a") as f:
        f.write('{"iteration": 5, "total_loss": 2.0}\n{"iteration": 4, "segm/AP": 1.0}\n')
    records = _read_records(str(tmp_path / "metrics.json"))
    assert [(r["iteration"], r.get("total_loss")) for r in records] == [
        (1, 9.0),
        (3, 9.0),
        (4, None),
        (5, 2.0),
    ]


def test_metrics_of_another_run_are_set_aside_and_an_open_writer_goes_on(tmp_path: Path) -> None:
    write(tmp_path, [{"iteration": 1, "total_loss": 9.0}])
    with (tmp_path / "metrics.json").open("a") as writer:
        set_metrics_aside(str(tmp_path))
        writer.write('{"iteration": 0, "total_loss": 1.0}\n')
    assert [r["iteration"] for r in _read_records(str(tmp_path / "metrics.json"))] == [0]
    assert "9.0" in (tmp_path / "metrics.previous.json").read_text()
    set_metrics_aside(str(tmp_path / "nowhere"))


def test_nothing_to_draw_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        plot_metrics(str(tmp_path))
    (tmp_path / "metrics.json").write_text("")
    with pytest.raises(ValueError, match="holds no iteration"):
        plot_metrics(str(tmp_path))
