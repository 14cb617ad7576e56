"""What only a GPU can show: half precision, equal answers, flat memory. Skipped without CUDA.

Run them with ``pytest -m gpu`` on a machine that has one; every system of ``systems.py`` is tested.
"""

import copy
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from detectron2.utils.visualizer import Visualizer
from torch import nn

from systems import META_ARCHS, moving_squares, quick_cfg
from vis_d2 import VideoPredictor, VISTrainer
from vis_d2.engine import build_checkpointer, predictor, prepare_config
from vis_d2.engine.train_loop import ClipTrainLoop
from vis_d2.inference import stream
from vis_d2.structures import VideoInstances, rle
from vis_d2.tools.benchmark import measure
from vis_d2.utils.video_io import open_source
from vis_d2.visualization import TrackVisualizer

DEVICE = "cuda"
SIZE = (64, 96)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """TF32 rounds as half precision does, which would hide what is compared here."""
    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    yield
    for switch, value in zip(switches, before):
        switch.allow_tf32 = value


def gpu_cfg(system: str, *opts: Any) -> CfgNode:
    sets = ["DATASETS.TRAIN", "('gpu_of_no_set',)", "DATASETS.TEST", "()"]
    sizes = ["INPUT.MIN_SIZE_TEST", SIZE[0], "MODEL.DEVICE", DEVICE]
    return quick_cfg(system, *sets, *sizes, *opts)


@pytest.fixture(scope="module", params=META_ARCHS)
def trained(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Tuple[str, str]:
    """A system that has learned one clip by heart on the GPU, and its checkpoint."""
    torch.manual_seed(0)
    cfg = gpu_cfg(request.param)
    prepare_config(cfg)
    model = build_model(cfg).train()
    clip = moving_squares(max(cfg.INPUT.CLIP.NUM_FRAMES, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sum(model([clip]).values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    folder = tmp_path_factory.mktemp("gpu")
    build_checkpointer(cfg, model, str(folder)).save("model")
    return request.param, str(folder / "model.pth")


def load(trained: Tuple[str, str], *opts: Any) -> VideoPredictor:
    system, path = trained
    return VideoPredictor(gpu_cfg(system, "MODEL.WEIGHTS", path, *opts))


def frames(count: int) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8 BGR; the squares stand still after a while, so that none leaves."""
    shown = [image.permute(1, 2, 0).numpy() for image in moving_squares(4)["image"]]  # CHW -> HWC
    return (shown[min(t, 3)] for t in range(count))


def same_tracks(a: VideoInstances, b: VideoInstances) -> None:
    assert len(a) == len(b) > 0
    assert a.pred_classes.tolist() == b.pred_classes.tolist()
    torch.testing.assert_close(a.scores, b.scores, atol=1e-3, rtol=0)
    overlap = rle.tube_iou(a.segmentations, b.segmentations)
    assert np.diag(overlap).min() > 0.99


def make_loop(
    model: nn.Module, clips: List[Dict], steps: int, mixed_precision: bool
) -> ClipTrainLoop:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    return ClipTrainLoop(model, [clips] * steps, optimizer, mixed_precision=mixed_precision)


def run_steps(loop: ClipTrainLoop, steps: int) -> List[float]:
    losses = []
    with EventStorage(0) as storage:
        for loop.iter in range(steps):
            loop.run_step()
            latest = storage.latest()["total_loss"]
            losses.append(latest[0] if isinstance(latest, tuple) else latest)
    return losses


def test_a_step_in_half_precision(trained: Tuple[str, str]) -> None:
    model = load(trained).model.train()
    clip = moving_squares(max(gpu_cfg(trained[0]).INPUT.CLIP.NUM_FRAMES, 2))
    clips = [clip, {**clip, "instances": [frame[:0] for frame in clip["instances"]]}]
    (expected,) = run_steps(make_loop(copy.deepcopy(model), clips, 1, False), 1)

    half = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, x, y: half.append(y.dtype == torch.float16))
    before = [p.detach().clone() for p in model.parameters()]
    loop = make_loop(model, clips, 8, True)
    losses = run_steps(loop, 8)  # the first ones only find the scale, and update nothing
    assert half and all(half)
    assert losses[0] == pytest.approx(expected, rel=0.05)
    assert loop.grad_scaler.is_enabled() and loop.grad_scaler.get_scale() > 1
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters()))
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32 and torch.isfinite(parameter).all()


def test_a_run_in_half_precision_resumes_with_its_scale(
    trained: Tuple[str, str], tmp_path: Path
) -> None:
    class Squares(VISTrainer):
        @classmethod
        def build_train_loader(cls, cfg: CfgNode, start_batch: int = 0) -> Iterator[List[Dict]]:
            while True:
                yield [moving_squares(max(cfg.INPUT.CLIP.NUM_FRAMES, 2))]

    opts = ["MODEL.WEIGHTS", trained[1], "OUTPUT_DIR", str(tmp_path), "SOLVER.AMP.ENABLED", True]
    opts += ["SOLVER.IMS_PER_BATCH", 1, "SOLVER.BASE_LR", 1e-4, "SOLVER.CHECKPOINT_PERIOD", 3]
    first = Squares(gpu_cfg(trained[0], *opts, "SOLVER.MAX_ITER", 3))
    first.resume_or_load(resume=False)
    first.train()
    second = Squares(gpu_cfg(trained[0], *opts, "SOLVER.MAX_ITER", 5))
    second.resume_or_load(resume=True)
    assert second.start_iter == 3
    assert second._trainer.grad_scaler.get_scale() == first._trainer.grad_scaler.get_scale()
    second.train()
    assert next(second.model.parameters()).device.type == DEVICE
    assert (tmp_path / "training_curve.png").is_file()


def test_the_answers_are_those_of_the_cpu(trained: Tuple[str, str]) -> None:
    on_gpu, on_cpu = load(trained), load(trained, "MODEL.DEVICE", "cpu")
    assert on_gpu.model.device.type == DEVICE and on_cpu.model.device.type == "cpu"
    same_tracks(on_gpu(list(frames(4))), on_cpu(list(frames(4))))


def test_losses_and_gradients_are_those_of_the_cpu(trained: Tuple[str, str]) -> None:
    clip = moving_squares(max(gpu_cfg(trained[0]).INPUT.CLIP.NUM_FRAMES, 2))
    norms = []
    for device in (DEVICE, "cpu"):
        model = load(trained, "MODEL.DEVICE", device).model.train()
        torch.manual_seed(0)
        losses = model([clip])
        sum(losses.values()).backward()
        gradients = [p.grad.cpu() for p in model.parameters() if p.grad is not None]
        norms.append([float(v.detach()) for v in losses.values()])
        norms[-1].append(float(torch.stack([g.norm() for g in gradients]).norm()))
    assert norms[0] == pytest.approx(norms[1], rel=1e-2, abs=1e-4)


def test_memory_stays_flat_over_a_long_stream(trained: Tuple[str, str]) -> None:
    predict = load(trained)
    if predict.model.window == 0:
        pytest.skip("the whole video is one window by design")
    peaks = []
    for t, tracks in predict.stream(frames(600)):
        assert len(tracks) > 0 and tracks.pred_masks.device.type == DEVICE
        if t % 100 == 10:  # the peak since the last time; the first one is that of the training
            peaks.append(torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()
    assert max(peaks[2:]) <= peaks[1] + 2**20


@pytest.mark.parametrize("with_boxes", [True, False])
def test_streamed_tracks_can_be_filtered_and_drawn(
    trained: Tuple[str, str], monkeypatch: Any, with_boxes: bool
) -> None:
    def without_boxes(*args: Any) -> Iterator[Tuple[int, Instances]]:
        for t, tracks in stream(*args):
            if tracks.has("pred_boxes") and not with_boxes:
                tracks.remove("pred_boxes")
            yield t, tracks

    monkeypatch.setattr(predictor, "stream", without_boxes)
    drawn = 0
    for frame, (_, tracks) in zip(frames(4), load(trained).stream(frames(4))):
        kept = tracks[tracks.scores >= 0.1]
        assert kept.pred_boxes.device.type == DEVICE
        picture = TrackVisualizer([], boxes=True, min_side=0).draw(frame, kept)
        drawn += (picture != frame).any()
    assert drawn == 4


def test_detectron2s_predictor_takes_an_image(trained: Tuple[str, str]) -> None:
    cfg = load(trained).cfg
    image = next(frames(1))
    answer = DefaultPredictor(cfg)(image)["instances"]
    assert len(answer) > 0
    assert {answer.pred_masks.device.type, answer.pred_boxes.device.type} == {DEVICE}
    assert answer.scores.device.type == answer.pred_classes.device.type == DEVICE
    picture = Visualizer(image[:, :, ::-1]).draw_instance_predictions(answer.to("cpu"))
    assert picture.get_image().shape == (*SIZE, 3)


def test_the_benchmark_waits_for_the_gpu(trained: Tuple[str, str], monkeypatch: Any) -> None:
    waits = []
    original = torch.cuda.synchronize
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *a: waits.append(a) or original(*a))
    row = measure(load(trained), open_source(list(frames(6))), warmup=2, num_frames=4)
    assert len(waits) >= 4 * 2 * 4  # begin and end of four stages of each frame
    assert row["device"].startswith(DEVICE) and row["cuda"] == torch.version.cuda
    assert row["device_name"] == torch.cuda.get_device_name() and row["peak_cuda_mb"] > 0
