"""Repeatable random draws: each purpose and position in the run has its own generator.

No state passes from one draw to the next. The seed, the purpose and the counters (epoch, micro-step, picture …)
determine every draw, so a run has no hidden random state. Turning one feature on cannot shift another's numbers, a
recomputed block draws the same mask again, and a resumed run continues where it stopped.
"""

from __future__ import annotations

import hashlib

import torch


def seed_for(seed: int, purpose: str, *counters: int) -> int:
    """Hash a seed, a purpose and counters to 63 bits, so that neighbouring counters give unrelated seeds."""
    text = ":".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(
    seed: int, purpose: str, *counters: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a fresh generator for one purpose at one position in the run.

    Args:
        seed: The run's seed.
        purpose: What is drawn: `init`, `order`, `flip`, `variant`, `latent`, `noise`, `timestep`, `dropout`,
            `held out`.
        counters: Where in the run, such as the epoch or the micro-step.
        device: Where the numbers are drawn. Different kinds of device draw different numbers.
    """
    return torch.Generator(device=device).manual_seed(seed_for(seed, purpose, *counters))
