"""The training loop: epochs, optimizer steps, the last good weights. It can be left and entered again between steps."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from .data.batches import Batch
from .events import Cancelled, Sink, StepEvent
from .host.out_of_memory import is_out_of_memory
from .late import Late
from .run.state import Diverged, NotFinite, Run, Unread
from .step import BatchLosses, Setup, training_step

_LATE = 4  # steps

AfterStep = Callable[[Run, bool], None]


def train(
    setup: Setup, run: Run, sink: Sink, after_step: AfterStep | None = None, smaller: Callable[[], None] | None = None
) -> Run:
    """Train from where the run stands to its planned number of steps.

    Args:
        setup: What every step is made of.
        run: Its state; at its beginning or between any two steps.
        sink: Receives each step and is checked for a cancel.
        after_step: Called after each optimizer step with the run and whether an epoch just ended.
        smaller: Makes a step take less memory, after one ran out of it; the step is then done again. It raises when
            nothing is left to do.

    Raises:
        Cancelled: The user pressed cancel; the run holds what was trained so far and can go on.
        Diverged: A loss or gradient is not finite; the run holds the last good weights and cannot go on.
    """
    pace = _Pace()
    try:
        while run.step < run.total and run.epoch < setup.plan.epochs:
            steps, epoch = setup.plan.steps(run.epoch), run.epoch
            for batches in steps[run.position :]:
                if run.step >= run.total:
                    break
                on_read = partial(pace.tell, sink, run, run.step + 1, epoch + 1, setup.plan.epochs)
                while not _fits(smaller, partial(optimizer_step, setup, run, batches, sink, on_read)):
                    assert smaller is not None
                    smaller()  # outside of the error's block: its traceback holds the activations
                run.read_arrived(most=_LATE)
                ended = run.position == len(steps)
                if ended:
                    run.record_epoch()
                if after_step:
                    with pace.stands_still():
                        after_step(run, ended)
        run.read_all()
    except BaseException as error:
        if isinstance(error, Cancelled):
            sink.take_cancel()  # else the host raises it again while the last losses are read
        failed = error if isinstance(error, NotFinite) else run.failure()
        if failed is None:
            raise
        run.guard.restore()
        run.go_back_to(max(failed.step - 2, 0))
        raise Diverged(why(setup, failed)) from error
    return run


def _fits(smaller: object, step: Callable[[], None]) -> bool:
    """Train a step; False when it ran out of memory and something can be done."""
    try:
        step()
    except Exception as error:
        if smaller is None or not is_out_of_memory(error):
            raise
        return False
    return True


def optimizer_step(
    setup: Setup, run: Run, batches: list[Batch], sink: Sink, on_read: Callable[[], None] = lambda: None
) -> None:
    """Train one optimizer step: every batch forward and backward, then one update of the weights.

    Args:
        setup: What every step is made of.
        run: Its state between two steps.
        batches: Of this step.
        sink: Is checked for a cancel.
        on_read: Called when the step's losses are read.

    Raises:
        Cancelled: The user pressed cancel between two batches; the run is as before this step.
    """
    flat = run.network.flat
    if text := setup.model.text:
        text.stopped = setup.plan.config.stopped(run.step, run.total)
        run.stop(text.stopped)
    flat.begin_step()
    done: list[BatchLosses] = []
    numbered = tuple(enumerate(batches, run.micro_step))
    for micro_step, batch in numbered:
        if sink.cancelled():
            raise Cancelled
        done.append(training_step(setup, batch, micro_step, run.guard.loss_scale))
    norm = torch.linalg.vector_norm(flat.total)
    if limit := setup.plan.config.max_grad_norm:
        # As torch.nn.utils.clip_grad_norm_ does it.
        flat.total.mul_((limit / (norm + 1e-6)).clamp_(max=1))
    losses = torch.cat([batch.losses for batch in done])
    rate = float(run.optimizer.param_groups[0]["lr"])
    is_lost = run.guard.step(losses.sum(), norm)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a step that was left out is none that was forgotten
        run.scheduler.step()
    concepts = tuple(concept for batch in done for concept in batch.concepts)
    values = Late(torch.cat([losses, is_lost[None]]))
    run.count_step(Unread(run.step + 1, values, concepts, numbered, on_read), rate)


def why(setup: Setup, error: NotFinite) -> str:
    """Say which step failed, on what, and what to do: its latents, its text, the model's output or the gradients.

    What a step was made of is loaded again to see which of it is not finite.
    """
    config, pictures = setup.plan.config, setup.plan.dataset.pictures
    named: dict[str, list[str]] = {"latents": [], "text": [], "all": []}
    for micro_step, batch in error.batches:
        for place, (index, flip, variant) in enumerate(batch.shown):
            name = pictures[index].path.name
            named["all"].append(name)
            if not setup.latents.load(index, flip, variant).isfinite().all():
                named["latents"].append(name)
            caption = setup.plan.caption(index, micro_step, place)
            if not setup.model.text and not all_finite(setup.captions.load(caption)):
                named["text"].append(f"{name}: {caption[:40]!r}")
    start = f"Training stopped at step {error.step}: "
    if named["latents"]:
        return start + (
            f"the latents of {', '.join(named['latents'])} hold values that are not numbers. Delete the folder "
            f"{setup.latents.cache.folder} and queue again."
        )
    if named["text"]:
        return start + (
            f"the encoded caption of {', '.join(named['text'])} holds values that are not numbers. Delete the folder "
            f"{setup.captions.cache.folder} and queue again."
        )
    what = "the MODEL's output" if error.what == "loss" else "the gradient"
    start += f"{what} for {', '.join(named['all'])} is not a finite number. "
    is_full = setup.precision == torch.float32
    if error.step == 1:
        start += "Nothing is trained yet, so it is not the learning rate. "
        return start + ("Load another file of this model." if is_full else "Set precision to fp32.")
    lora_plus = "" if config.lora_plus == 1 else f" with LoRA+ {config.lora_plus:g}"
    trained = [kind for kind, is_trained in config.trained_encoders.items() if is_trained]
    text = "".join(f", {kind.replace('_', ' ')} {config.rate_of(kind):g}" for kind in trained)
    return start + (
        f"The learning rate {config.learning_rate:g}{text} is probably too high for {config.optimizer}{lora_plus}. Set "
        f"it to a tenth{'' if is_full else ', or set precision to fp32'}."
    )


def all_finite(value: object) -> bool:
    """Whether every number in nested lists, dicts and tensors is finite."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, dict):
        return all(map(all_finite, value.values()))
    return all(map(all_finite, value)) if isinstance(value, (list, tuple)) else True


class _Pace:
    """How long the run takes: since it began, and for each of the last steps."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._times: deque[float] = deque([self._started], maxlen=21)

    @contextmanager
    def stands_still(self) -> Iterator[None]:
        """Count none of the time inside the block, such as that of a sample."""
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        self._started += seconds
        self._times = deque((moment + seconds for moment in self._times), maxlen=self._times.maxlen)

    def tell(self, sink: Sink, run: Run, step: int, epoch: int, epochs: int) -> None:
        """Tell of a step whose losses were just read."""
        sink.step(self.event(run, step, epoch, epochs))

    def event(self, run: Run, step: int, epoch: int, epochs: int) -> StepEvent:
        """The event of a step."""
        self._times.append(now := time.monotonic())
        per_step = (now - self._times[0]) / (len(self._times) - 1)
        return StepEvent(
            step, run.total, epoch, epochs, run.read[-1], run.smoothed_loss, run.rates[step - 1], now - self._started,
            per_step, run.latest,
        )  # fmt: skip
