"""Trains the base model's VAE: the host's TAESD class with 16 latent channels, 2.4 M parameters.

It must know more than the world: a LoRA may paint a teal character with thin lines. So two thirds of its pictures use
the full colour cube: inked doodles, gradients, noise textures, dots, patches.
"""

from __future__ import annotations

import math
import random
import time
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from ..world import world
from .assemble import LATENT_SCALE, LATENT_SHIFT, VAE, card, ship, shipped
from .compute import autocast
from .progress import SAVE_EVERY, Checkpoints, say, warm_up, warm_up_from

CROP = 64
WORLDLY = 600  # different pictures of the world
BATCH = 6  # few pictures and many steps: a large batch learned less in the same time
RATE, RATE_ON = 1e-3, 6e-4  # from nothing, and when a finished training continues
FORGIVEN = 0.04  # deviation of the noise on latents, so that the decoder tolerates the denoiser's errors


def _any_color(rng: random.Random) -> tuple[int, int, int]:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def any_picture(rng: random.Random) -> Image.Image:
    """A random picture of colours, gradients, lines and textures."""
    color = partial(_any_color, rng)
    side = CROP
    picture = Image.new("RGB", (side, side), color())
    if rng.random() < 0.6:
        ramp = Image.linear_gradient("L").resize((side * 2, side * 2)).rotate(rng.uniform(0, 360))
        ramp = ramp.crop((side // 2, side // 2, side // 2 + side, side // 2 + side))
        picture = Image.composite(Image.new("RGB", picture.size, color()), picture, ramp)
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.randrange(9)):
        x, y, w, h = (rng.randrange(-8, side) for _ in range(4))
        box = (x, y, x + abs(w) + 2, y + abs(h) + 2)
        kind = rng.randrange(5)
        if kind == 0:
            draw.ellipse(box, fill=color(), outline=color(), width=rng.randrange(1, 4))
        elif kind == 1:
            inside = color() if rng.random() < 0.6 else None
            draw.rectangle(box, fill=inside, outline=color(), width=rng.randrange(1, 4))
        elif kind == 2:
            draw.line(box, fill=color(), width=rng.randrange(1, 6))
        elif kind == 3:
            draw.polygon([(rng.randrange(side), rng.randrange(side)) for _ in range(rng.randrange(3, 7))], fill=color())
        else:
            draw.arc(box, rng.randrange(360), rng.randrange(360), fill=color(), width=rng.randrange(1, 4))
    if rng.random() < 0.2:
        grain = np.random.default_rng(rng.getrandbits(32)).normal(0, 14, (side, side, 1))
        picture = Image.fromarray((np.asarray(picture) + grain).clip(0, 255).astype(np.uint8))
    return picture


def doodle(rng: random.Random) -> Image.Image:
    """Inked blobs, dots within dots and thin limbs, like those of drawn characters, with smooth edges."""
    color = partial(_any_color, rng)
    over = 4
    side = CROP * over
    ink = color() if rng.random() < 0.3 else (rng.randrange(60),) * 3
    width = rng.randrange(4, 14)
    picture = Image.new("RGB", (side, side), color())
    draw = ImageDraw.Draw(picture)

    def blob(x: float, y: float, radius: float, fill: tuple[int, int, int], line: bool) -> None:
        flat = rng.uniform(0.6, 1.5)
        box = (x - radius, y - radius * flat, x + radius, y + radius * flat)
        draw.ellipse(box, fill=fill, outline=ink if line else None, width=width)

    for _ in range(rng.randrange(1, 8)):
        x, y, radius = rng.randrange(side), rng.randrange(side), rng.uniform(6, 90)
        kind = rng.randrange(4)
        if kind == 0:
            blob(x, y, radius, color(), rng.random() < 0.8)
        elif kind == 1:  # an eye
            small = min(radius, 50)
            blob(x, y, small, (255, 255, 255), True)
            blob(x + rng.uniform(-0.3, 0.3) * small, y + rng.uniform(-0.3, 0.3) * small, small * 0.5, ink, False)
        elif kind == 2:  # a limb with a dot at its end
            end = (x + rng.uniform(-90, 90), y + rng.uniform(-90, 90))
            draw.line((x, y, *end), fill=ink, width=width + rng.randrange(24))
            blob(*end, rng.uniform(8, 30), color(), True)
        else:
            corners = [(x + rng.uniform(-radius, radius), y + rng.uniform(-radius, radius)) for _ in range(3)]
            draw.polygon(corners, fill=color(), outline=ink, width=width)
    return picture.resize((CROP, CROP), Image.Resampling.LANCZOS)


def batch(rng: random.Random, size: int, worldly: list[Image.Image]) -> Tensor:
    """Draw a batch [B, 3, 64, 64], -1 to 1: a third scenes of shapes, a sixth anything, half doodles."""
    pictures = []
    for number in range(size):
        if number % 3:
            pictures.append(any_picture(rng) if number % 6 == 1 else doodle(rng))
            continue
        whole = rng.choice(worldly)
        # Crops avoid the rim, which is mostly plain background and teaches nothing.
        x, y = (rng.randrange(side // 8, side * 3 // 8) for side in whole.size)
        pictures.append(whole.crop((x, y, x + CROP, y + CROP)))
    array = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels; matching them too makes lines sharp."""
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def train(state: Checkpoints, steps: int, sample: Tensor, *, go_on: bool = True) -> None:
    """Train from where the last run stopped and ship the result; do nothing if that is done.

    Args:
        state: The work folder.
        steps: Total steps.
        sample: Pictures for `scaled`.
        go_on: Begin with the shipped weights if the work folder has no state.
    """
    done = card().get("vae_steps", 0) if go_on else 0
    if done >= steps:
        return
    from . import host

    torch.manual_seed(1)
    model = host.new_taesd()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 4:
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            # Residual blocks start near zero, or fifteen of them in a row explode.
            if name.endswith("conv.4.weight"):
                parameter.data.mul_(0.1)
        elif parameter.ndim == 1:
            torch.nn.init.zeros_(parameter)
    model = model.requires_grad_(True)
    optimizer = torch.optim.AdamW([p for n, p in model.named_parameters() if not n.startswith("vae_")], fused=True)
    step = state.load("vae", model=model, optimizer=optimizer)
    if step < done and VAE.is_file():
        # Another machine's work, without its optimizer.
        model.load_state_dict({name: tensor.float() for name, tensor in shipped(VAE).items()})
        step = done
        warm_up_from(optimizer, step)
    rate = RATE_ON if done else RATE
    rng = random.Random(100)
    worldly = [world.draw_scene(world.placed(world.random_scene(rng), rng)) for _ in range(WORLDLY)]
    started, seen = time.monotonic(), step
    while step < steps:
        share = (step - done) / (steps - done)  # of the way from the shipped steps
        for group in optimizer.param_groups:
            group["lr"] = rate * warm_up(optimizer, step, 100) * (1 + math.cos(math.pi * share)) / 2
        # Drawn from the step's number, so that a continued training equals an uninterrupted one.
        x, source = batch(random.Random(f"vae {step}"), BATCH, worldly), torch.Generator().manual_seed(step)
        with autocast():
            latent = model.taesd_encoder(x * 0.5 + 0.5).float()
            seen_latent = latent + FORGIVEN * torch.randn(latent.shape, generator=source)
            out = model.taesd_decoder(seen_latent).float() * 2 - 1
        sharp = sum(F.l1_loss(a, b) for a, b in zip(edges(out), edges(x), strict=True))
        spread = latent.mean((0, 2, 3)).square().mean() + (latent.var((0, 2, 3)) - 1).square().mean()
        loss = F.l1_loss(out, x) + F.mse_loss(out, x) + sharp + 0.02 * spread
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0 or step == steps:
            per_step = (time.monotonic() - started) / (step - seen)
            say(f"vae {step}/{steps} loss {loss.item():.4f} l1 {F.l1_loss(out, x).item():.4f} {per_step:.2f} s/step")
        if step % SAVE_EVERY == 0 or step == steps:
            state.save("vae", step, model=model, optimizer=optimizer)
    ship(VAE, scaled(model, sample).state_dict(), vae_steps=step)


def scaled(model: torch.nn.Module, sample: Tensor) -> torch.nn.Module:
    """Set the VAE's own scale so that latents of the sample have mean 0 and deviation 1 as the denoiser sees them.

    Args:
        model: The trained VAE; changed in place.
        sample: Pictures [B, 3, H, W], -1 to 1, on which mean and deviation are measured.
    """
    with torch.no_grad():
        raw = model.taesd_encoder(sample * 0.5 + 0.5)
        mean, deviation = raw.mean().item(), raw.std().item()
        # The host hands the denoiser (latent - LATENT_SHIFT) · LATENT_SCALE; this makes that (raw - mean) / deviation.
        model.vae_scale.fill_(deviation * LATENT_SCALE)
        model.vae_shift.fill_(LATENT_SHIFT - mean / (deviation * LATENT_SCALE))
    return model


def finished() -> torch.nn.Module:
    """The shipped VAE, in fp32."""
    from . import host

    model = host.new_taesd().requires_grad_(False).eval()
    model.load_state_dict({name: tensor.float() for name, tensor in shipped(VAE).items()})
    return model
