"""The pictures of the concept pages, each a closed form or a toy, in half a minute on one core.

python studies/pictures.py                     # all, into docs/img
python studies/pictures.py dabi cci --out /tmp/pictures
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from fewstep.diagnostics.cci import cci
from fewstep.diagnostics.response import CATEGORICAL, CONTINUOUS
from fewstep.lab.theory.consistency import sample_spread
from fewstep.lab.theory.mixtures import Mixture
from fewstep.paths import PATHS, linear_path
from fewstep.samplers import FlowSampler

STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#888888"
WIDTH, MODES = 0.12, torch.tensor([[-1.0], [1.0]])
RULES = ("0", "0.5", "0.9", "1", "ancestral", "churn:8", "cosine:1,0", "elf:1.5")


def seeded(seed: int = 0) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def figure(columns: int = 2) -> tuple[Figure, list[plt.Axes]]:
    """One row of panels."""
    result, axes = plt.subplots(1, columns, figsize=(4.6 * columns, 3.2), layout="constrained", squeeze=False)
    return result, list(axes[0])


def trajectories(x_0: Tensor, num_steps: int, reinjection: str, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Times (N+1,) and states (N+1, B) of the exact denoiser of two modes."""
    law, sampler = Mixture(linear_path(), MODES, WIDTH), FlowSampler(linear_path(), reinjection=reinjection)
    states = list(sampler.iterate(law, x_0, num_steps=num_steps, generator=seeded(seed)))
    return torch.tensor([state.time for state in states]), torch.stack([state.x_t[:, 0, 0] for state in states])


def path_picture() -> Figure:
    """alpha and sigma of both paths; the flow of two modes from noise at t = 0 to data at t = 1."""
    result, (left, right) = figure()
    t = torch.linspace(0, 1, 101)
    for (name, path), dashes in zip(PATHS.items(), ("-", "--"), strict=True):
        label = name.replace("_", " ")
        left.plot(t, path().schedule.alpha(t), dashes, color=BLUE, label=f"alpha, {label}")
        left.plot(t, path().schedule.sigma(t), dashes, color=ORANGE, label=f"sigma, {label}")
    left.set(xlabel="time t (0 noise, 1 data)", title="x_t = alpha x_1 + sigma x_0")
    left.legend(fontsize=8)
    x_0 = torch.linspace(-2.4, 2.4, 24)[:, None, None]
    times, states = trajectories(x_0, 100, "0")
    right.plot(times, states, color=GREY, linewidth=0.8)
    right.axhline(0, color=ORANGE, linestyle=":", label="decision boundary")
    right.set(xlabel="time t", ylabel="x_t", title="A flow parts at the boundary")
    right.legend(fontsize=8, loc="upper left")
    return result


def latents_picture() -> Figure:
    """Twelve tokens as points of a plane, their cells, and one latent under noise; accuracy over the noise."""
    result, (left, right) = figure()
    tokens = torch.randn(12, 2, generator=seeded(4))
    tokens = (tokens - tokens.mean(0)) / tokens.std(0)
    line = torch.linspace(-2.6, 2.6, 300)
    plane = torch.cartesian_prod(line, line)
    cells = torch.cdist(plane, tokens).argmin(1).reshape(300, 300).T
    left.pcolormesh(line, line, cells, cmap="tab20", alpha=0.35, rasterized=True)
    left.scatter(*tokens.T, color="black", s=14)
    noisy = tokens[3] + 0.4 * torch.randn(200, 2, generator=seeded(5))
    left.scatter(*noisy.T, color=ORANGE, s=4, label="one latent + noise of 0.4 rms")
    left.set(title="A latent per token, and what reads as it", xlim=(-2.6, 2.6), ylim=(-2.6, 2.6))
    left.legend(fontsize=8, loc="upper left")
    levels = torch.linspace(0, 1.6, 17)
    noise = torch.randn(400, 12, 2, generator=seeded(6))
    read = [(torch.cdist(tokens + level * noise, tokens).argmin(-1) == torch.arange(12)) for level in levels]
    right.plot(levels, [hits.double().mean() for hits in read], color=BLUE, marker="o", markersize=3)
    right.axvline(0.4, color=ORANGE, linestyle=":", label="about the noise of the last of 8 steps")
    right.set(xlabel="noise (rms of the latents)", ylabel="tokens read right", ylim=(0, 1.02), title="Noise robustness")
    right.legend(fontsize=8)
    return result


def readouts_picture() -> Figure:
    """Half-way between "new york" and "los angeles": in parallel any pair is drawn, a head draws one of the two."""
    result, panels = figure()
    joint = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
    parallel = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    for axes, table, title in zip(panels, (parallel, joint), ("parallel readout", "autoregressive head"), strict=True):
        axes.imshow(table, cmap="Blues", vmin=0, vmax=0.6)
        axes.set_xticks([0, 1], ["york", "angeles"])
        axes.set_yticks([0, 1], ["new", "los"])
        axes.set(title=title, xlabel="second token", ylabel="first token")
        for row in range(2):
            for column in range(2):
                axes.text(column, row, f"{table[row, column]:.2f}", ha="center", va="center")
    return result


def reinjection_picture() -> Figure:
    """Eight steps with and without fresh noise; the spread that each rule leaves of a Gaussian, over the steps."""
    result, (left, right) = figure()
    x_0 = torch.linspace(-2, 2, 9)[:, None, None]
    for reinjection, color in (("0", GREY), ("1", ORANGE)):
        times, states = trajectories(x_0, 8, reinjection)
        left.plot(times, states, color=color, linewidth=1, marker="o", markersize=2)
        left.plot([], [], color=color, label=f"re-injection {reinjection}")
    left.set(xlabel="time t", ylabel="x_t", title="Fresh noise lets a sample change its mind")
    left.legend(fontsize=8, loc="upper left")
    steps = [2, 4, 8, 16, 32, 64, 128, 256]
    for rule in RULES:
        right.plot(
            steps,
            [sample_spread(rule, linear_path(), num_steps) for num_steps in steps],
            marker="o",
            markersize=3,
            label=rule,
        )
    right.axhline(1, color="black", linewidth=0.8)
    right.set(xscale="log", xlabel="steps", ylabel="standard deviation, samples / data", title="Which rules are cold")
    right.legend(fontsize=7, ncols=2)
    return result


def dabi_picture() -> Figure:
    """A readout of two tokens on a line: probability, and response along the normal over a random direction's."""
    result, (left, right) = figure()
    n, sharpness = 16, 12.0

    def text(z: Tensor) -> Tensor:
        """One token of two: the first number decides it."""
        lead = sharpness * z[:, 0, :1]
        return torch.stack([lead, -lead], -1)

    def images(z: Tensor) -> Tensor:
        """Every number is a pixel."""
        return z.flatten(1)

    line = torch.linspace(-1, 1, 200)
    points = torch.zeros(200, 1, n)
    points[:, 0, 0] = line
    left.plot(line, text(points).softmax(-1)[:, 0, 0], color=BLUE)
    left.axvline(0, color=ORANGE, linestyle=":")
    left.set(xlabel="latent along the normal (rms)", ylabel="probability of token A", title="A readout flips")
    normal = torch.zeros(1024, 1, n)
    normal[:, 0, 0] = 1
    directions = torch.nn.functional.normalize(torch.randn(1024, 1, n, generator=seeded(7)), dim=-1)
    radii = torch.logspace(-2, 0.5, 24)
    for decode, response, color, label in (
        (text, CATEGORICAL, BLUE, "text: sharp at a boundary"),
        (images, CONTINUOUS, GREEN, "images: alike in all directions"),
    ):
        at = torch.zeros(1024, 1, n)
        ratios = [
            response.finite(decode, at, normal, float(radius)).mean()
            / response.finite(decode, at, directions, float(radius)).mean()
            for radius in radii
        ]
        right.plot(radii, ratios, color=color, label=label)
    right.axhline(n, color="black", linewidth=0.8, linestyle="--", label=f"n = {n}, the bound")
    right.set(xscale="log", yscale="log", xlabel="radius r (rms)", ylabel="DABI(r)", title="DABI over the radius")
    right.legend(fontsize=8)
    return result


class Copies:
    """Two positions of two tokens; the second repeats the first with probability ``agreement``."""

    def __init__(self, agreement: float) -> None:
        self.agreement = agreement

    def logits(self, z: Tensor, ids: Tensor) -> Tensor:
        """Logits (B, 2, 2) given the token before."""
        first = torch.zeros(len(ids), 2)
        odds = torch.tensor([self.agreement, 1 - self.agreement]).clamp(min=1e-9).log()
        second = torch.where(ids[:, :1] == 0, odds, odds.flip(0))
        return torch.stack([first, second], 1)

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Ids (B, 2)."""
        first = torch.randint(2, (len(z),), generator=generator)
        same = torch.rand(len(z), generator=generator) < self.agreement
        return torch.stack([first, torch.where(same, first, 1 - first)], 1)


def cci_picture() -> Figure:
    """CCI of two tokens over how often the second repeats the first."""
    result, (axes,) = figure(1)
    agreements = [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0]
    z = torch.zeros(64, 2, 1)
    values = [cci(Copies(a), z, num_draws=64, generator=seeded(8)).rows[0].estimate.value for a in agreements]
    axes.plot(agreements, values, color=BLUE, marker="o", label="head: sees the first token")
    axes.axhline(0, color=ORANGE, label="parallel readout: 0 by construction")
    axes.set(
        xlabel="how often the second token repeats the first", ylabel="CCI", title="Uncertainty that a head resolves"
    )
    axes.legend(fontsize=8)
    return result


PICTURES: dict[str, Callable[[], Figure]] = {
    "path": path_picture,
    "latents": latents_picture,
    "readouts": readouts_picture,
    "reinjection": reinjection_picture,
    "dabi": dabi_picture,
    "cci": cci_picture,
}


def main() -> None:
    """Draw the pictures asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="pictures; all where left out")
    parser.add_argument("--out", type=Path, default=Path("docs/img"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        for name in args.names or PICTURES:
            PICTURES[name]().savefig(args.out / f"{name}.png", dpi=110)
            print(args.out / f"{name}.png")


if __name__ == "__main__":
    main()
