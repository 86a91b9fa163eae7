"""How each kind of model fits into cards of each size, by the trainer's own estimate. No card is needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ...training.config import MEMORY
from .results import Row

if TYPE_CHECKING:
    from ...training.fit import Fit

CARDS = tuple(size for size in MEMORY if size.endswith(" GB"))
NO_WAY, NO_ESTIMATE = "does not fit", "no estimate"


class Trained(NamedTuple):
    """A model as people load it.

    Attributes:
        shape: A key of `models.SHAPES`.
        side: Pixels of the picture's side.
        weights: Number format of its file.
    """

    shape: str
    side: int
    weights: str


_DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp8": "float8_e4m3fn"}
MODELS = {
    "SD 1.5, 512 px": Trained("sd15", 512, "fp16"),
    "SDXL, 1024 px": Trained("sdxl", 1024, "fp16"),
    "SD 3.5 medium, 1024 px": Trained("sd35", 1024, "bf16"),
    "Lumina 2, 1024 px": Trained("lumina2", 1024, "bf16"),
    "Z-Image, 1024 px": Trained("zimage", 1024, "bf16"),
    "Chroma, 1024 px": Trained("chroma", 1024, "fp8"),
    "Flux dev, 1024 px": Trained("flux", 1024, "fp8"),
    "Qwen-Image, 1024 px": Trained("qwen", 1024, "fp8"),
}


def cards_benchmark(only: Sequence[str] = ()) -> Iterator[list[Row]]:
    """Fit a run of rank 16 with AdamW and batches of one picture into each card.

    Args:
        only: Keys of `SHAPES`; all of `MODELS` if empty.

    Yields:
        The rows of one model, one for each card.

    Raises:
        SystemExit: `only` names no model of the table.
    """
    known = [model.shape for model in MODELS.values()]
    for name in only:
        if name not in known:
            raise SystemExit(f"{name!r} is not a model of the table. Choose from {', '.join(known)}.")
    for label, model in MODELS.items():
        if not only or model.shape in only:
            yield rows_of(label)


def rows_of(label: str) -> list[Row]:
    """The rows of one model, one for each card."""
    from .machine import host_version

    model = MODELS[label]
    fit = fit_on_a_card(model)
    same = {"comfyui": host_version(), "model": label, "weights": model.weights}
    return [{**same, "card": card, **_fitted(fit, card)} for card in CARDS]


def fit_on_a_card(model: Trained) -> Fit:
    """The fit of a run on an NVIDIA card, which need not exist: nothing is loaded."""
    import torch

    from ...training.fit import Fit
    from ...training.host.model import HostModel
    from ...training.preflight import trained_layers
    from .cases import Job, our_inputs
    from .models import random_model

    class OnCard(HostModel):
        """A model without data that would compute on a card."""

        def __init__(self, patcher: Any) -> None:
            super().__init__(patcher)
            self.device = torch.device("cuda")

    job = Job(model.shape, model.side, "bf16", 1)
    plan, latents, captions = our_inputs(job)
    with torch.inference_mode():
        patcher = random_model(job.shape, getattr(torch, _DTYPES[model.weights]), torch.device("meta"), draws=False)
    latent = tuple(latents.load(0, False).shape)
    on_card = OnCard(patcher)
    return Fit(
        on_card, plan, captions, plan.largest(), latent, torch.bfloat16, trained_layers(on_card, plan.config)
    )


def _fitted(fit: Fit, card: str) -> Row:
    """What is taken on a card, and how much memory it takes."""
    from ...training.ladder import GIB, preset_bytes

    choice = fit.choice(preset_bytes(card))
    if fit.is_rough:
        return {"way": NO_ESTIMATE}
    if not choice.fits:
        return {"way": NO_WAY}
    need = choice.need
    parts = {"weights": need.weights, "copies": need.copies, "lora": need.lora, "step": need.step}
    parts["memory"] = choice.taken
    return {"way": choice.rung.name, **{f"{name}_gb": round(size / GIB, 2) for name, size in parts.items()}}


def card_table(rows: Iterable[Row]) -> str:
    """A Markdown table of how models fit into one card, with one line for each."""
    order = list(MODELS)
    lines = ["| model | weights | way to fit | memory, GB |", "| --- | --- | --- | --- |"]
    for row in sorted(rows, key=lambda row: order.index(row["model"])):
        number = row.get("memory_gb", "")
        memory = "" if number == "" else f"{float(number):.1f}"
        way = row["way"].rpartition(", ")[2]  # the others before it are above it on the page
        lines.append(f"| {row['model']} | {row['weights']} | {way} | {memory} |")
    return "\n".join(lines)
