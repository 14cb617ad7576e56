"""One training step: accumulate gradients, stop on a loss that is not finite, update."""

import contextlib
import math
import time
from typing import Any, ContextManager, Dict, Iterable, Iterator, List, Optional

import numpy as np
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["ClipTrainLoop"]


class ClipTrainLoop(SimpleTrainer):
    """Optimizes a model on batches of clips, in one precision or two.

    The random numbers that the model draws in an iteration are a function of the seed, the
    iteration and the process, so that a resumed run repeats an unbroken one exactly without any
    random state in the checkpoint.

    Args:
        model: answers a list of clip dicts with a dict of scalar losses; may be wrapped for
            data-parallel training.
        data_loader: endless batches of this process. May be set later by ``set_loader``.
        optimizer: its ``step`` updates the model (and clips).
        accumulate: batches per step. Gradients are averaged, so that ``k`` batches of ``b`` clips
            equal one of ``k * b`` where losses are means over clips.
        mixed_precision: run the forward pass under autocast: float16 with loss scaling on a GPU,
            bfloat16 on a CPU.
        seed: of the model's random numbers, >= 0.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[List[Dict[str, Any]]],
        optimizer: torch.optim.Optimizer,
        *,
        accumulate: int = 1,
        mixed_precision: bool = False,
        seed: int = 0,
    ) -> None:
        if accumulate < 1:
            raise ValueError(f"SOLVER.ACCUMULATE must be at least 1, not {accumulate}")
        super().__init__(model, (), optimizer)
        self.accumulate = accumulate
        self.mixed_precision = mixed_precision
        self.seed = seed
        device_type = next(model.parameters()).device.type
        self._dtype = torch.float16 if device_type == "cuda" else torch.bfloat16
        self._device_type = device_type
        # Float16 gradients underflow without scaling; disabled, the scaler passes all through.
        scaler = getattr(torch.amp, "GradScaler", None) or torch.cuda.amp.GradScaler
        self.grad_scaler = scaler(enabled=mixed_precision and device_type == "cuda")
        self.set_loader(data_loader)

    def set_loader(self, data_loader: Iterable[List[Dict[str, Any]]]) -> None:
        """Continue with the first batch of ``data_loader``; workers start with the first step."""
        self.data_loader = data_loader
        self._batches: Optional[Iterator[List[Dict[str, Any]]]] = None

    def run_step(self) -> None:
        """Make one optimizer step from ``accumulate`` batches.

        Raises:
            FloatingPointError: a loss is NaN or infinite in any process; names the iteration and
                all losses. The model is as the last step left it.
        """
        if not self.model.training:
            raise RuntimeError("the model was left in eval mode; call model.train()")
        self._seed_iteration()
        if self._batches is None:
            self._batches = iter(self.data_loader)
        self.optimizer.zero_grad()
        metrics: List[Dict[str, float]] = []
        for last in [False] * (self.accumulate - 1) + [True]:
            metrics.append(self._accumulate_batch(sync=last))
        self.grad_scaler.unscale_(self.optimizer)  # the optimizer clips true gradients
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        self._put_metrics(metrics)

    def state_dict(self) -> Dict[str, Any]:
        """Iteration, hooks, optimizer and loss scale."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; a disabled loss scaler has nothing to restore."""
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])

    def _seed_iteration(self) -> None:
        words = np.random.SeedSequence([self.seed, self.iter, comm.get_rank()])
        seed_all_rng(int(words.generate_state(1)[0]))

    def _accumulate_batch(self, sync: bool) -> Dict[str, float]:
        """Add the gradients of one batch; return its losses, the mean over processes."""
        start = time.perf_counter()
        batch = next(self._batches)
        data_time = time.perf_counter() - start
        with self._gradient_sync(sync):
            with torch.autocast(self._device_type, self._dtype, enabled=self.mixed_precision):
                losses = self.model(batch)
            metrics = self._reduce_metrics(losses, data_time)
            self._check_finite(metrics)
            self.grad_scaler.scale(sum(losses.values()) / self.accumulate).backward()
        return metrics

    def _gradient_sync(self, sync: bool) -> ContextManager:
        """Processes exchange gradients once per step, not once per batch."""
        if sync or not isinstance(self.model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def _reduce_metrics(self, losses: Dict[str, Tensor], data_time: float) -> Dict[str, float]:
        own = {name: float(value.detach()) for name, value in losses.items()}
        # Every process sees every loss, so all stop together when one of them is not finite.
        gathered = comm.all_gather({**own, "data_time": data_time})
        mean = {name: float(np.mean([m[name] for m in gathered])) for name in own}
        return {**mean, "data_time": max(m["data_time"] for m in gathered)}

    def _check_finite(self, metrics: Dict[str, float]) -> None:
        if all(math.isfinite(value) for value in metrics.values()):
            return
        losses = ", ".join(f"{k}={v:.6g}" for k, v in metrics.items() if k != "data_time")
        raise FloatingPointError(f"a loss is not finite at iteration {self.iter}: {losses}")

    def _put_metrics(self, batches: List[Dict[str, float]]) -> None:
        if not comm.is_main_process():
            return
        storage = get_event_storage()
        storage.put_scalar("data_time", sum(batch["data_time"] for batch in batches))
        names = [name for name in batches[0] if name != "data_time"]
        losses = {name: float(np.mean([batch[name] for batch in batches])) for name in names}
        storage.put_scalar("total_loss", sum(losses.values()))
        storage.put_scalars(**losses)
