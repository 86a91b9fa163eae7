"""Random draws that can be repeated: each purpose and place in the run has a generator of its own.

Nothing is carried from one draw to the next, so a run has no hidden random state: the seed, the purpose and the
counters (epoch, micro-step, picture …) say everything. Turning one feature on cannot shift another's numbers,
a recomputed block draws the same mask again, and a resumed run goes on where it stopped.
"""

from __future__ import annotations

import hashlib

import torch


def seed_for(seed: int, purpose: str, *counters: int) -> int:
    """Mix a seed, a purpose and counters to 63 bits that look nothing like their neighbours'."""
    text = ":".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(
    seed: int, purpose: str, *counters: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a fresh generator for one purpose at one place of the run.

    Args:
        seed: The run's seed.
        purpose: What is drawn: `init`, `order`, `flip`, `noise`, `timestep`, `dropout`.
        counters: Where in the run, such as the epoch or the micro-step.
        device: Where the numbers are drawn. Numbers differ between kinds of device.
    """
    return torch.Generator(device=device).manual_seed(seed_for(seed, purpose, *counters))
