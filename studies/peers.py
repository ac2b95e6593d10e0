"""Peers at equal compute: the flows of ELF, FLM, FMLM and LangFlow after their papers, on our text, width and time.

    python studies/peers.py                 # trains what is missing, one row a model; an hour and a half on one core
    python studies/peers.py --only elf --share 0.01 --samples 8 --out runs/peers_trial           # a trial run

Ours is the quickstart's flow and student; no peer takes fewer seconds of one thread than that flow, and a row has its
own. All are read by a parallel readout that was trained under noise, and scored by one language model. What differs
from the papers: ELF's latents are our autoencoder's, where it has a frozen T5's, and its decode branch is our readout;
FLM's posterior is given a position's own evidence; FMLM's map is regressed; LangFlow's schedule is not learned.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from latents import SPHERICAL_FLOW, Study, outcomes, run
from torch import Tensor, nn

from fewstep.data.tokenizer import vocabulary_size
from fewstep.model import SavedModel
from fewstep.types import Latents

ONE_HOT = """model:
  init_args:
    autoencoder: {class_path: peers.OneHot}
    readout: {class_path: fewstep.readouts.LinearReadout}
    objective: {init_args: {token_masking: 0}}
"""


class OneHot(nn.Module):
    """One-hot tokens of unit rms as latents, after FLM: a :class:`~fewstep.types.LatentEncoder`, of D = V."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.config, self.latent_dim = {"vocab_size": vocab_size}, vocab_size

    def num_latents(self, num_tokens: int) -> int:
        """K = L."""
        return num_tokens

    def encode(self, ids: Tensor, mask: Tensor) -> Latents:
        """Token ``ids`` and ``mask`` (B, L) to latents ``z`` (B, L, V), zero at padding."""
        return Latents(self.codebook()[ids] * mask[..., None], mask.bool())

    def codebook(self) -> Tensor:
        """The latent of every token, (V, V)."""
        return torch.eye(self.latent_dim) * self.latent_dim**0.5

    first_codes = codebook  # what the readout starts from


@dataclass(frozen=True)
class Stage:
    """A run of ``train``: settings on top of the stage's own, what it builds on, and how its model is sampled."""

    name: str
    config: str
    steps: int
    flags: tuple[str, ...] = ()
    num_steps: str = ""
    reinjection: str = "0,1"


SELF_CONDITIONING = ("--model.objective.self_conditioning_probability=0.5", "--model.denoiser.self_conditioning=true")
ELF = ("--model.objective.velocity_loss=true",)
ONE_HOT_TIMES = tuple(f"--model.objective.time_sampler.{each}" for each in ("mean=-2.1", "std=1"))
AS_THE_FLOW = ("--model.prediction=x1", "--model.denoiser.max_frequency=1000")
FLOW_MAP = (
    *("--config", "objectives/semigroup", *AS_THE_FLOW),
    "--model.denoiser.class_path=fewstep.denoisers.CategoricalDenoiser",
    "--model.denoiser.vocab_size={vocab_size}",
    "--model.initialise_from={flow}",
    *ONE_HOT_TIMES,
)


def halving(num_steps: int, start: str) -> Stage:
    """A round of progressive distillation whose teacher is the first flow, in 16 steps."""
    flags = (f"--model.objective.num_steps={num_steps}", f"--model.objective.teacher_steps={16 // num_steps}")
    flags += ("--model.teacher={flow}", f"--model.initialise_from={{{start}}}")
    shipped = ("--config", "objectives/progressive", *AS_THE_FLOW)
    return Stage(f"pd{num_steps}", "flow", 60, (*shipped, *flags), str(num_steps))


TIGHT = Stage("tight", "autoencoder", 1000, ("--config", "latents/chunks", "--model.autoencoder.latent_dim=16"))
SINGLE_TOKENS = Stage("single_tokens", "autoencoder", 800)
SPHERICAL = Stage("spherical", "autoencoder", 300, ("--config", "latents/spherical"))
ONE_HOTS = Stage("one_hots", "autoencoder", 30, ("--config", "{one_hot}"))
PEERS = {
    "ours": (
        TIGHT,
        Stage("flow", "flow", 3000, (), "1,2,4,8,16"),
        Stage("student", "distribution_matching", 100, (), "1,2,4,8,16", "1"),
    ),
    "elf": (SINGLE_TOKENS, Stage("flow", "flow", 2400, (*ELF, *SELF_CONDITIONING), "1,2,4,8,16", "0 elf:1.5")),
    "elf_tight": (TIGHT, Stage("flow", "flow", 2600, (*ELF, *SELF_CONDITIONING), "1,2,4,8,16", "0 elf:1.5")),
    "elf_pd": (
        SINGLE_TOKENS,
        Stage("flow", "flow", 1500, ELF),
        halving(4, "flow"),
        halving(2, "pd4"),
        halving(1, "pd2"),
    ),
    "langflow": (SPHERICAL, Stage("flow", "flow", 2000, (*SPHERICAL_FLOW, *SELF_CONDITIONING), "1,2,4,8,16")),
    "flm": (ONE_HOTS, Stage("flow", "flow", 1150, (*SPHERICAL_FLOW, *ONE_HOT_TIMES), "1,2,4,8,16")),
    "fmlm": (
        ONE_HOTS,
        Stage("flow", "flow", 600, (*SPHERICAL_FLOW, *ONE_HOT_TIMES)),
        Stage("map", "flow", 280, FLOW_MAP, "1,2,4,8,16"),
    ),
}


class Peers(Study):
    """Trains, measures and keeps rows, those of each training seed under a folder of its own."""

    def timed(self, stage: Stage, folder: Path, *flags: str) -> float:
        """Train a stage that is not there yet. The seconds that it took of one thread."""
        began, file = time.process_time(), folder / "seconds.json"
        self.train(stage.config, folder, self.args.seed, *flags, max_steps=max(1, round(stage.steps * self.args.share)))
        if not file.is_file():
            file.write_text(json.dumps(time.process_time() - began))
        return float(json.loads(file.read_text()))

    def peer(self, name: str) -> None:
        """Train the stages of a peer, then add a row for each that is sampled."""
        out, spent = self.args.out / str(self.args.seed), 0.0
        out.mkdir(parents=True, exist_ok=True)
        (out / "one_hot.yaml").write_text(ONE_HOT)
        made = {"one_hot": str(out / "one_hot.yaml")}
        for stage in PEERS[name]:
            is_autoencoder = stage.config == "autoencoder"  # which peers share
            folder = out / stage.name if is_autoencoder else out / name / stage.name
            flags = [flag.format(**made) for flag in stage.flags]
            if not is_autoencoder:
                flags.append(f"--model.autoencoder={made['flow' if stage.name == 'student' else 'autoencoder']}")
                flags.append("--model.allow=[peers]")
            spent += self.timed(stage, folder, *flags)
            made["autoencoder" if is_autoencoder else stage.name] = str(folder / "model")
            if is_autoencoder:
                saved = SavedModel.from_pretrained(folder / "model", allow=("peers",))
                made["vocab_size"] = str(vocabulary_size(saved.tokenizer))
                tokens = f"--data.tokenizer={folder}/model/tokenizer"
                self.train("language_model", self.args.out / "language_model", 0, tokens)
            elif stage.num_steps:
                self.rows.append({"peer": name, "stage": stage.name, "seed": self.args.seed, "seconds": spent})
                self.rows[-1] |= self.evaluate(stage, folder)
                with self.file.open("a") as lines:
                    lines.write(json.dumps(self.rows[-1]) + "\n")

    def evaluate(self, stage: Stage, folder: Path) -> dict[str, Any]:
        """Perplexity over shuffled words at real text's entropy, by re-injection and number of steps."""
        both, allow, scorer = folder / "scored", ("--allow", "peers"), self.args.out / "language_model" / "model"
        if not (both / "config.json").is_file():
            run("convert", str(folder / "model"), str(scorer), str(both), *allow)
        sweep = ["--steps", stage.num_steps, "--reinjection", *stage.reinjection.split(), "--readout", "parallel"]
        sweep += ["--seeds", "1", "--samples", str(self.args.samples), "--cci_examples", "0"]
        run("evaluate", str(both), *sweep, "--out", str(folder / "evaluation"), *allow)
        return outcomes("", folder / "evaluation" / "rows.jsonl")


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each model and re-injection, a column for each number of steps."""
    steps = ("1", "2", "4", "8", "16")
    lines = ["| model | s | re-injection | " + " | ".join(f"K = {k}" for k in steps) + " |", "|---" * 8 + "|"]
    for row in rows:
        cells = {tuple(key.split(" = ")): value for key, value in row.items() if " = " in key}
        for rule in dict.fromkeys(rule for rule, _ in cells):
            given = (cells.get((rule, k), "") for k in steps)
            shown = ("never" if value is None else value and f"{value:.2f}" for value in given)
            strength = rule.removeprefix(", gamma ").removesuffix(", K")
            lines.append(f"| {row['peer']}, {row['stage']} | {row['seconds']:.0f} | {strength} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/peers"))
    parser.add_argument("--only", default=",".join(PEERS), help="names of peers, with commas between")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--share", type=float, default=1.0, help="of every stage's steps")
    args = parser.parse_args()
    args.source, args.rows, args.size = "everyday", None, None
    peers = Peers(args)
    done = {row["peer"] for row in peers.rows if row["seed"] == args.seed}
    for name in args.only.split(","):
        if name not in done:
            peers.peer(name)
    print(table(peers.rows))


if __name__ == "__main__":
    main()
