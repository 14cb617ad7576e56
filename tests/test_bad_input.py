"""Bad input as a user meets it: through ``train_net.py``, ``vis-d2 demo`` and ``VideoPredictor``.

What each reader makes of it in detail is tested beside that reader.
"""

import copy
import json
import runpy
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model
from PIL import Image

from systems import META_ARCHS, ROOT, quick_cfg
from vis_d2 import VideoPredictor, cli
from vis_d2.data import register_ytvis_instances
from vis_d2.engine import build_checkpointer, prepare_config

HEIGHT, WIDTH, LENGTH = 48, 64, 3
SMALL = "INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TRAIN_SAMPLING choice INPUT.MIN_SIZE_TEST 64"
SHORT = "SOLVER.IMS_PER_BATCH 2 SOLVER.MAX_ITER 2 DATALOADER.NUM_WORKERS 0 SEED 1"
Content = Dict[str, Any]


def config_file(system: str) -> str:
    return str(ROOT / "configs" / "quick" / f"{system}.yaml")


def make_frame(t: int) -> np.ndarray:
    frame = np.random.default_rng(t).integers(40, 90, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    frame[10:34, 4 + 4 * t : 28 + 4 * t] = 220
    return frame


def make_content() -> Content:
    """Two videos with one object each."""
    videos, annotations = [], []
    for video_id, name in ((1, "first"), (2, "second")):
        files = [f"{name}/{t}.png" for t in range(LENGTH)]
        size = {"height": HEIGHT, "width": WIDTH, "length": LENGTH}
        videos.append({"id": video_id, "file_names": files, **size})
        lefts = [4 + 4 * t for t in range(LENGTH)]
        polygons = [[[x, 10, x + 24, 10, x + 24, 34, x, 34]] for x in lefts]
        boxes = [[x, 10, 24, 24] for x in lefts]
        track = {"id": video_id, "video_id": video_id, "category_id": 1, "iscrowd": 0}
        annotations.append({**track, "segmentations": polygons, "bboxes": boxes})
    names = ("disk", "square", "triangle", "star", "ring")
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    return {"categories": categories, "videos": videos, "annotations": annotations}


@pytest.fixture
def add_set(tmp_path: Path, monkeypatch: Any) -> Callable[..., str]:
    """Writes a data set and registers it; ``change`` may spoil content and files first."""
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", dict(catalog.data))

    def add(name: str, change: Callable[[Content, Path], Any] = lambda c, root: None) -> str:
        root, content = tmp_path / name, make_content()
        for video in content["videos"]:
            for t, file in enumerate(video["file_names"]):
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(make_frame(t)).save(root / file)
        text = change(content, root)
        (root / "set.json").write_text(text if isinstance(text, str) else json.dumps(content))
        register_ytvis_instances(name, str(root / "set.json"), str(root))
        return name

    return add


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of the first system, untrained."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    cfg = quick_cfg(META_ARCHS[0], "DATASETS.TRAIN", "('weights_of_no_set',)")
    prepare_config(cfg)
    build_checkpointer(cfg, build_model(cfg), str(folder)).save("model")
    return str(folder / "model.pth")


@pytest.fixture
def train_net(tmp_path: Path) -> Callable[..., Any]:
    """Runs ``train_net.py`` in this process; its output goes into the folder "run"."""
    main = runpy.run_path(str(ROOT / "train_net.py"))["main"]

    def run(train: str, test: str, *argv: str, system: str = META_ARCHS[0]) -> Any:
        sets = ["DATASETS.TRAIN", f"('{train}',)", "DATASETS.TEST", f"('{test}',)"]
        flags = [word for word in argv if word.startswith("--")]
        opts = [word for word in argv if not word.startswith("--")]
        common = [*f"{SMALL} {SHORT}".split(), *sets, "OUTPUT_DIR", str(tmp_path / "run")]
        line = ["--config-file", config_file(system), *flags, *common, *opts]
        return main(default_argument_parser().parse_args(line))

    return run


def last_line(error: BaseException) -> str:
    """What stands last on the screen of somebody who started the script."""
    return "".join(traceback.format_exception_only(type(error), error)).strip().splitlines()[-1]


@pytest.fixture
def demo(tmp_path: Path, weights: str, capsys: Any) -> Callable[..., Any]:
    """Runs ``vis-d2 demo``; gives the exit code and the error lines."""

    def run(source: Any, *options: str, output: str = "out/clip.mp4") -> Any:
        argv = ["demo", "--config-file", config_file(META_ARCHS[0]), "--weights", weights]
        argv += ["--input", str(source), "--output", str(tmp_path / output), "--min-side", "0"]
        classes = ["DATASETS.TRAIN", "('weights_of_no_set',)", "MODEL.VIS.NUM_CLASSES", "5"]
        try:
            code = cli.main([*argv, *options, "INPUT.MIN_SIZE_TEST", "64", *classes])
        except SystemExit as stop:
            code = stop.code
        text = capsys.readouterr().err
        assert "Traceback" not in text
        return code, [line for line in text.splitlines() if "error: " in line]

    return run


def spoil_frame(content: bytes) -> Callable[[Content, Path], None]:
    def change(_: Content, root: Path) -> None:
        for name in ("first", "second"):  # whichever comes first
            path = root / name / "1.png"
            path.write_bytes(content) if content else path.unlink()

    return change


def other_size(_: Content, root: Path) -> None:
    for name in ("first", "second"):
        Image.new("RGB", (20, 30)).save(root / name / "1.png")


FRAMES = {
    "missing": (spoil_frame(b""), "no such file"),
    "no image": (spoil_frame(b"hello"), "cannot be decoded: cannot identify image file"),
    "another size": (other_size, r"the frame is 30x20 \(HxW\), the annotations are for 48x64"),
}
WHERE = r"video [12], frame 1 \(.*(first|second)/1\.png\): "


@pytest.mark.parametrize("case", FRAMES)
def test_training_names_video_frame_and_path_of_a_bad_frame(
    add_set: Any, train_net: Any, case: str
) -> None:
    change, message = FRAMES[case]
    # Every pair of neighbours in a video of three frames contains frame 1.
    with pytest.raises((OSError, ValueError), match=WHERE + message):
        train_net(add_set("spoilt", change), add_set("good"))


def test_a_bad_frame_in_a_worker_is_named_last(add_set: Any, train_net: Any) -> None:
    names = add_set("spoilt", FRAMES["missing"][0]), add_set("good")
    with pytest.raises(OSError) as error:
        train_net(*names, "DATALOADER.NUM_WORKERS", "1")
    assert "first/1.png): no such file" in last_line(error.value).replace("second", "first")


def test_a_bad_frame_in_the_evaluation_costs_no_training(
    add_set: Any, train_net: Any, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match=r"but its evaluation failed; .*model_final\.pth") as e:
        train_net(add_set("good"), add_set("spoilt", FRAMES["no image"][0]))
    assert "frame 1 (" in last_line(e.value.__cause__)
    state = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)
    assert state["iteration"] == 1
    for name in ("metrics.json", "manifest.json", "training_curve.png"):
        assert (tmp_path / "run" / name).is_file()


def put(*path_and_value: Any) -> Callable[[Content, Path], None]:
    *path, last, value = path_and_value

    def change(content: Content, _: Path) -> None:
        for key in path:
            content = content[key]
        content[last] = value

    return change


TRACK = r"set\.json: video 1 \(first\), track 1"
FIRST = ("annotations", 0)
FILES = {
    "mask of another size": (
        put(*FIRST, "segmentations", 2, {"size": [9, 9], "counts": [80, 1]}),
        TRACK + r", frame 2: bad mask: mask has size \[9, 9\], expected \[48, 64\]",
    ),
    "a mask too few": (
        put(*FIRST, "segmentations", [None, None]),
        TRACK + ": 2 segmentations, but the video has 3 frames",
    ),
    "a box too many": (put(*FIRST, "bboxes", [None] * 4), TRACK + ": 4 bboxes, .* has 3 frames"),
    "length": (
        put("videos", 0, "length", 4),
        r"\(first\): length is 4, but there are 3 file_names",
    ),
    "category": (
        put(*FIRST, "category_id", 6),
        TRACK + r": category_id 6 is not one of the file's categories \[1, 2, 3, 4, 5\]",
    ),
    "box outside": (
        put(*FIRST, "bboxes", 1, [64, 0, 5, 5]),
        TRACK + r", frame 1: box \[64, 0, 5, 5\] \(XYWH\) lies outside the 64x48 image",
    ),
    "box of NaN": (
        put(*FIRST, "bboxes", 1, [float("nan"), 0, 5, 5]),
        TRACK + r", frame 1: box \[nan, 0, 5, 5\], expected four finite numbers",
    ),
    "broken JSON": (
        lambda content, _: json.dumps(content)[:-7],
        r"set\.json is not valid JSON: .* at line 1, column \d+",
    ),
    "no object at all": (put("annotations", []), "spoilt: none of 2 videos has an object"),
    "no video": (
        lambda content, _: content.update(videos=[], annotations=[]),
        "spoilt: no video with a frame",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_training_names_the_place_in_a_bad_file(add_set: Any, train_net: Any, case: str) -> None:
    change, message = FILES[case]
    with pytest.raises(ValueError, match=message):
        train_net(add_set("spoilt", change), add_set("good"))


def poor_but_legal(content: Content, root: Path) -> None:
    """An empty video, a video without objects, a track that is never seen, a video of a frame."""
    never_seen = {**content["annotations"][0], "id": 7, "segmentations": [None] * LENGTH}
    del content["annotations"][1]
    content["annotations"].append(never_seen)
    empty = {"id": 3, "height": 4, "width": 4, "length": 0, "file_names": []}
    single = {**content["videos"][0], "id": 4, "length": 1, "file_names": ["first/0.png"]}
    content["videos"] += [empty, single]
    track = copy.deepcopy({**content["annotations"][0], "id": 8, "video_id": 4})
    track.update(segmentations=track["segmentations"][:1], bboxes=track["bboxes"][:1])
    content["annotations"].append(track)
    for number, mode in enumerate(("L", "RGBA", "I;16")):  # frames as other tools write them
        path = root / "second" / f"{number}.png"
        grey = Image.open(path).convert("L")
        if mode == "I;16":
            Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(path)
        else:
            grey.convert(mode).save(path)


@pytest.mark.parametrize("system", META_ARCHS)
def test_what_is_poor_but_legal_trains_and_evaluates(
    add_set: Any, train_net: Any, system: str, capsys: Any
) -> None:
    name = add_set("poor", poor_but_legal)
    opts = ("INPUT.CLIP.FILTER_EMPTY", "False", "SOLVER.IMS_PER_BATCH", "3")
    assert "AP" in train_net(name, name, *opts, system=system)["segm"]
    assert "set.json: video 3 has no frames; left out" in capsys.readouterr().out


@pytest.mark.parametrize("system", META_ARCHS)
def test_a_training_that_explodes_says_when_and_how(
    add_set: Any, train_net: Any, tmp_path: Path, system: str
) -> None:
    name = add_set("good")
    schedule = "SOLVER.BASE_LR 1e30 SOLVER.WARMUP_ITERS 0 SOLVER.CLIP_GRADIENTS.ENABLED False"
    with pytest.raises(FloatingPointError, match=r"at iteration \d: .*loss_\w+=(nan|inf)"):
        train_net(name, name, *schedule.split(), "SOLVER.MAX_ITER", "9", system=system)
    for path in (tmp_path / "run").glob("*.pth"):
        model = torch.load(path, weights_only=True)["model"]
        assert all(torch.isfinite(value).all() for value in model.values())


def test_the_script_ends_with_one_line_about_a_misspelt_key(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("SOLVER:\n  BASE_RL: 0.1\n")
    line = [sys.executable, "train_net.py", "--config-file", str(tmp_path / "mine.yaml")]
    run = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    message = f"unknown config key SOLVER.BASE_RL in {tmp_path}/mine.yaml; did you mean "
    assert message + "SOLVER.BASE_LR" in run.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "sets, message",
    [
        (("ytvis_2019_trian", "good"), "'ytvis_2019_trian'; did you mean ytvis_2019_train"),
        (("good", "ytvis_2019_vall"), "'ytvis_2019_vall'; did you mean ytvis_2019_val"),
    ],
)
def test_a_misspelt_data_set_is_named_before_the_training(
    add_set: Any, train_net: Any, tmp_path: Path, sets: Any, message: str
) -> None:
    add_set("good")
    with pytest.raises(KeyError) as error:
        train_net(*sets)
    assert message in last_line(error.value)
    assert not list((tmp_path / "run").glob("*.pth"))


def write_weights(folder: Path, good: str) -> Dict[str, str]:
    """Files that are no weights of this model, and what is to be said about them."""
    other = {f"layer{i}.0.conv1.weight": torch.zeros(4) for i in range(40)}  # torchvision's names
    torch.save(other, folder / "resnet.pth")
    torch.save({"model": {}, "vis_d2": {"meta_architecture": "Other"}}, folder / "system.pth")
    torch.save({"model": torch.nn.Linear(2, 2)}, folder / "whole.pth")
    (folder / "half.pth").write_bytes(Path(good).read_bytes()[:100_000])
    (folder / "page.pth").write_text("<html>")
    (folder / "zoo.pkl").write_bytes(b"\x80\x04}.")
    return {
        "resnet.pth": "this is a checkpoint of another model: matched 0 of the model's",
        "system.pth": "this is a checkpoint of another model: Other, but the config builds",
        "whole.pth": "it holds the Python object torch.nn.modules.linear.Linear",
        "half.pth": "cannot be read as a checkpoint",
        "page.pth": "cannot be read as a checkpoint",
        "zoo.pkl": "set MODEL.VIS.ALLOW_PICKLE True",
        "nowhere.pth": "nowhere.pth not found",
    }


def test_weights_of_something_else_are_one_line(
    add_set: Any, train_net: Any, demo: Any, tmp_path: Path, weights: str
) -> None:
    add_set("good")
    (tmp_path / "frames").mkdir()
    Image.fromarray(make_frame(0)).save(tmp_path / "frames" / "0.png")
    for name, message in write_weights(tmp_path, weights).items():
        path = str(tmp_path / name)
        code, lines = demo(tmp_path / "frames", "--weights", path)
        assert code == 1 and len(lines) == 1, name
        assert path in lines[0] and message in lines[0], lines
    with pytest.raises(ValueError) as error:
        train_net("good", "good", "MODEL.WEIGHTS", str(tmp_path / "resnet.pth"))
    assert "resnet.pth: this is a checkpoint of another model" in last_line(error.value)
    opts = ["MODEL.WEIGHTS", str(tmp_path / "half.pth"), "MODEL.VIS.NUM_CLASSES", 5]
    with pytest.raises(ValueError, match="half.pth: cannot be read as a checkpoint"):
        VideoPredictor(quick_cfg(META_ARCHS[0], *opts))


def write_sources(folder: Path) -> Dict[str, str]:
    """Things that cannot be drawn, and what is to be said about them."""
    (folder / "empty").mkdir()
    (folder / "text.mp4").write_text("these are no pictures\n" * 50)
    (folder / "nothing.mp4").touch()
    (folder / "text.png").write_text("no picture")
    return {
        "empty": "no frame found, expected .jpg, .jpeg, .png files",
        "text.mp4": "cannot be opened as a video",
        "nothing.mp4": "cannot be opened as a video",
        "text.png": "frame 0 cannot be read from",
        "nowhere.mp4": "no such video file, folder of frames, glob or stream",
        "nowhere*.jpg": "no frame found",
    }


def test_sources_without_a_video_are_one_line(demo: Any, tmp_path: Path) -> None:
    for name, message in write_sources(tmp_path).items():
        code, lines = demo(tmp_path / name)
        assert code == 1 and len(lines) == 1, name
        assert str(tmp_path / name) in lines[0] and message in lines[0], lines
        assert not (tmp_path / "out" / "clip.mp4").exists()


@pytest.mark.parametrize("case", ["another size", "no image", "missing"])
def test_a_demo_keeps_the_frames_before_a_bad_one(
    add_set: Any, demo: Any, tmp_path: Path, case: str
) -> None:
    root = tmp_path / add_set("spoilt", FRAMES[case][0])
    if case == "missing":  # a gap in a folder is no error: the frames that exist are the video
        assert demo(root / "first") == (0, [])
        return
    code, lines = demo(root / "first")
    assert code == 1 and len(lines) == 1
    assert "frame 1" in lines[0] and "first/1.png" in lines[0]
    assert lines[0].endswith("drawn up to there (frames: 1)")
    for name in ("clip.mp4", "contact_sheet.png", "results.json"):
        assert (tmp_path / "out" / name).stat().st_size > 0


def test_options_that_make_no_sense_are_one_line(demo: Any, add_set: Any, tmp_path: Path) -> None:
    frames = tmp_path / add_set("good") / "first"
    cases: List[Any] = [
        (["--threshold", "2"], 2, "--threshold: expected a score from 0 to 1, got 2"),
        (["TEST.VIS.MODUS", "ap"], 1, "TEST.VIS.MODUS in the command line; did you mean TEST.VIS"),
        (["--device", "gpu"], 1, "MODEL.DEVICE is 'gpu', expected cpu, cuda"),
        (["--output", f"{frames}.png/o.mp4"], 1, "first.png/o.mp4: its folder cannot be made"),
        (["--output", str(frames / "o.mp4")], 1, "would become one of the frames"),
        (["--config-file", "nowhere.yaml"], 1, "config file 'nowhere.yaml' does not exist"),
    ]
    Path(f"{frames}.png").touch()
    for options, code, message in cases:
        found, lines = demo(frames, *options)
        assert found == code and len(lines) == 1, options
        assert message in lines[0], lines


def test_a_demo_takes_frames_of_any_colour_and_a_name_without_extension(
    demo: Any, add_set: Any, tmp_path: Path
) -> None:
    frames = tmp_path / add_set("poor", poor_but_legal) / "second"
    assert demo(frames, output="out/clip") == (0, [])
    assert (tmp_path / "out" / "clip.mp4").is_file()
    assert demo(frames / "0.png", output="one/clip.mp4") == (0, [])  # a video of one frame


def test_the_predictor_names_the_frame_that_is_none(weights: str) -> None:
    opts = ["MODEL.WEIGHTS", weights, "INPUT.MIN_SIZE_TEST", 64]
    opts += ["DATASETS.TRAIN", "('weights_of_no_set',)"]
    predictor = VideoPredictor(quick_cfg(META_ARCHS[0], *opts))
    frames = [make_frame(0), make_frame(1), make_frame(2)[:30]]
    with pytest.raises(ValueError, match="frame 2 is 30x64 .* but the first frame is 48x64"):
        predictor(frames)
    steps = predictor.stream(frames)
    assert [next(steps)[0], next(steps)[0]] == [0, 1]  # what came before has been given
    with pytest.raises(ValueError, match="frame 2 is 30x64"):
        next(steps)
    with pytest.raises(ValueError, match=r"frame 0 must be a uint8 array of shape \(H, W, 3\)"):
        predictor([frames[0] / 255.0])
    with pytest.raises(ValueError, match="the video has no frame"):
        predictor([])
    with pytest.raises(TypeError, match="a video source cannot be None"):
        predictor(None)
