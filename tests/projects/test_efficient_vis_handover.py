import importlib.util
import json
from pathlib import Path

import pytest

from vis_d2.data.datasets.toy import write_toy

ROOT = Path(__file__).resolve().parents[2]
TINY = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "1", "SOLVER.CHECKPOINT_PERIOD", "1"]
TINY += ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "TEST.VIS.PREFETCH", "0"]
TINY += ["MODEL.EFFICIENT_VIS.NUM_STAGES", "1", "MODEL.EFFICIENT_VIS.NUM_QUERIES", "2"]
TINY += ["MODEL.EFFICIENT_VIS.CORRESPONDENCE_FROM", "0", "SOLVER.WARMUP_ITERS", "0"]
TINY += ["SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", "0.0"]  # checkpoints without its state


@pytest.fixture(scope="module")
def handover():
    path = ROOT / "projects" / "EfficientVIS" / "handover.py"
    spec = importlib.util.spec_from_file_location("efficient_vis_handover", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_rows(handover, aps):
    """Rows from (correspondence, link, score) -> AP of seeds 3 and 5."""
    return [
        handover.Row(
            handover.Setting(*setting),
            {seed: dict.fromkeys(handover.METRICS, ap) for seed, ap in zip((3, 5), values)},
        )
        for setting, values in aps.items()
    ]


def test_the_best_threshold_is_that_of_the_mean_over_seeds(handover):
    rows = make_rows(
        handover,
        {
            (True, "query", None): (40, 44),
            (False, "query", None): (5, 9),
            (False, "handcraft", 0.1): (30, 10),
            (False, "handcraft", 0.2): (22, 20),
            (True, "handcraft", 0.1): (33, 35),
            (True, "handcraft", 0.2): (31, 35),
        },
    )
    best = handover.best_rows(rows)
    assert [row.setting for row in best] == [
        (True, "query", None),
        (False, "query", None),
        (False, "handcraft", 0.2),
        (True, "handcraft", 0.1),
    ]
    text = handover.table(rows).splitlines()
    assert "AP of seeds 3 / 5" in text[0]
    assert text[2].startswith("| with | query | 40.0 / 44.0 | 42.0 |")
    assert text[3].startswith("| without | query | 5.0 / 9.0 | 7.0 |")
    assert text[4].startswith("| without | links, score >= 0.2 | 22.0 / 20.0 | 21.0 |")
    shown = [line for line in text[7:] if "| links" in line]
    assert len(shown) == 4  # all thresholds


def command(output, *opts):
    config = str(ROOT / "configs" / "quick" / "efficient_vis.yaml")
    options = ["--output", str(output), "--seeds", "4", "--scores", "0.5"]
    return [*options, "--config-file", config, *TINY, *opts]


def test_trainings_differ_in_one_key_and_are_not_repeated(handover, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_toy(tmp_path / "toy", {"train": 2, "val": 1})
    out = tmp_path / "out"
    handover.main(command(out))
    text = capsys.readouterr().out
    runs = {
        name: json.loads((out / "seed_4" / name / "manifest.json").read_text())
        for name in ("with", "without")
    }
    same = {run["initial_weights_sha256"] for run in runs.values()}
    assert len(same) == 1 and {run["seed"] for run in runs.values()} == {4}
    configs = [set(run["config"].splitlines()) for run in runs.values()]
    assert configs[0] ^ configs[1] == {
        "    CORRESPONDENCE: true",
        "    CORRESPONDENCE: false",
        f"OUTPUT_DIR: {out}/seed_4/with",
        f"OUTPUT_DIR: {out}/seed_4/without",
    }
    weights = [(out / "seed_4" / name / "model_final.pth").read_bytes() for name in runs]
    assert weights[0] != weights[1]

    content = json.loads((out / "handover.json").read_text())
    settings = [(r["correspondence"], r["link"], r["score"]) for r in content["rows"]]
    links = [(False, "handcraft", 0.5), (True, "handcraft", 0.5)]
    assert settings == [(True, "query", None), (False, "query", None), *links]
    for row in content["rows"]:
        assert row["seeds"]["4"] == row["mean"] and set(row["mean"]) == set(handover.METRICS)
    assert (out / "handover.md").read_text() in text

    def fail(*_):
        raise AssertionError("done again")

    # Finished trainings and evaluations are taken as they are.
    with monkeypatch.context() as patch:
        patch.setattr(handover.VISTrainer, "train", fail)
        patch.setattr(handover, "build_model", fail)
        handover.main(command(out))
    assert capsys.readouterr().out.endswith((out / "handover.md").read_text())

    # An unfinished one goes on, from its last checkpoint.
    (out / "seed_4" / "without" / "model_final.pth").unlink()
    (out / "seed_4" / "without" / "last_checkpoint").write_text("model_0000000.pth")
    handover.main(command(out))
    resumed = json.loads((out / "seed_4" / "without" / "manifest.json").read_text())["resumed"]
    assert [run["start_iteration"] for run in resumed] == [1]
    assert json.loads((out / "handover.json").read_text()) == content

    with pytest.raises(ValueError, match="another SOLVER.BASE_LR; remove it or choose another"):
        handover.main(command(out, "SOLVER.BASE_LR", "0.1"))
