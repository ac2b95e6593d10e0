"""Which latents can be written in few steps: the same text, flow and number of updates for every latent.

    python studies/latents.py                                    # every latent, 3 seeds; resumes; hours on one core
    python studies/latents.py --only transformer,chunks --seeds 1
    python studies/latents.py --source grammar                        # share of sentences that the grammar can write
    python studies/latents.py --size debug --seeds 1 --samples 8 --out runs/latents_debug        # a trial run
    python studies/latents.py --rows docs/findings/latents.jsonl --draw docs/img/latents_table.png      # no training

For each latent and training seed: autoencoder and readout, flow, distribution matching, each from its shipped settings
with the steps below, then ``fewstep evaluate`` at real text's entropy and ``fewstep diagnose``. Perplexity is over that
of shuffled words, under a language model of the latent's own tokens, since vocabularies differ. One row a latent and
seed in ``rows.jsonl``; at the end Spearman's rank correlation of each property with each outcome, over the latents'
means over seeds, with an interval from resampling latents.
"""

import argparse
import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import bootstrap, spearmanr

from fewstep.cli.main import main as fewstep
from fewstep.data.tokenizer import vocabulary_size
from fewstep.evaluation.matched import matched_rows
from fewstep.evaluation.rows import FLOW, RowFile, at_usual_temperature
from fewstep.model import SavedModel
from fewstep.training.trainer_settings import emulates_bfloat16

STEPS = {"autoencoder": 800, "flow": 1000, "distribution_matching": 100, "language_model": 700}


@dataclass(frozen=True)
class Latent:
    """Settings on top of the shipped stages; latents with the same ``tokens`` share a language model."""

    autoencoder: tuple[str, ...] = ()
    flow: tuple[str, ...] = ()
    tokens: str = "bpe"
    readout_steps: int = STEPS["autoencoder"]


SPHERICAL_FLOW = ("--config", "latents/spherical_flow", "--model.denoiser.vocab_size={vocab_size}")
LATENTS = {
    "transformer": Latent(),
    "chunks": Latent(("--config", "latents/chunks")),
    "quantised": Latent(("--config", "latents/quantised")),
    "variational": Latent(("--config", "latents/variational")),
    "spherical": Latent(("--config", "latents/spherical"), SPHERICAL_FLOW),
    "pretrained": Latent(("--config", "latents/pretrained"), (), "wordpiece", readout_steps=120),
}
DIAGNOSED = ("token_accuracy", "noise_robustness", "dabi", "boundary_distance", "dabi_generated", "late_flips")
PROPERTIES = {
    "bits_per_dimension": "bits a dimension",
    "noise_accuracy_at_0": "accuracy, clean",
    "noise_accuracy_at_0.4": "accuracy at 0.4 rms",
    "dabi_fraction": "DABI / n at boundaries",
    "boundary_distance_p50": "boundary distance, data",
    "boundary_distance_generated_p50": "boundary distance, generated",
    "late_flip_rate": "late flips",
}


class Study:
    """Trains, measures and keeps rows under one folder."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.source = args, args.source
        self.folder = args.out / args.source.replace(":", "_")
        self.file = args.rows or args.out / "rows.jsonl"
        self.rows: list[dict[str, Any]] = []
        if self.file.is_file():
            self.rows = [json.loads(line) for line in self.file.read_text().splitlines()]

    def train(self, stage: str, folder: Path, seed: int, *flags: str, max_steps: int = 0) -> str:
        """The model folder of a stage, trained where it is not there yet."""
        if not (folder / "model" / "config.json").is_file():
            number = max_steps or STEPS[stage]
            steps = ["--size", self.args.size] if self.args.size else [f"--trainer.max_steps={number}"]
            steps += [] if self.args.size else [f"--trainer.val_check_interval={number}"]
            steps += ["--trainer.precision=32-true"] if emulates_bfloat16() else []
            resume = ["--ckpt_path", "last"] if (folder / "checkpoints" / "last.ckpt").is_file() else []
            seeds = (f"--seed_everything={seed}", f"--model.seed={seed}", f"--data.seed={seed}")
            run("train", "fit", "--config", stage, *flags, *steps, *seeds, *self.text(), f"--run_dir={folder}", *resume)
        return str(folder / "model")

    def text(self) -> list[str]:
        """The corpus, a document or sentence a block."""
        return [f"--data.source={self.source}", "--data.num_validation_blocks=128"]

    def row(self, name: str, seed: int) -> dict[str, Any]:
        """Everything measured on one latent, trained with one seed."""
        latent, folder = LATENTS[name], self.folder / name / str(seed)
        encoder = [f"--data.tokenizer={self.args.encoder}", f"--model.autoencoder.model={self.args.encoder}"]
        own = (*latent.autoencoder, *(encoder if name == "pretrained" else ()))
        autoencoder = self.train("autoencoder", folder / "autoencoder", seed, *own, max_steps=latent.readout_steps)
        vocab_size = vocabulary_size(SavedModel.from_pretrained(autoencoder).tokenizer)
        of_flow = [flag.format(vocab_size=vocab_size) for flag in latent.flow]
        shared = self.folder / f"language_model_{latent.tokens}"
        scorer = self.train("language_model", shared, 0, f"--data.tokenizer={autoencoder}/tokenizer")
        flow = self.train("flow", folder / "flow", seed, *of_flow, f"--model.autoencoder={autoencoder}")
        matching = folder / "distribution_matching"
        student = self.train("distribution_matching", matching, seed, f"--model.autoencoder={flow}")
        figures: dict[str, Any] = {"latent": name, "source": self.source, "seed": seed}
        for kind, model, steps, rules in (("flow", flow, "1,4,32", "0,1"), ("matched", student, "1,2,4", "1")):
            both = folder / f"{kind}_scored"
            if not (both / "config.json").is_file():
                run("convert", model, scorer, str(both))
            sweep = ("--steps", steps, "--reinjection", rules, "--readout", "parallel", "--seeds", "1")
            sweep += ("--samples", str(self.args.samples), "--out", str(folder / f"{kind}_evaluation"))
            run("evaluate", str(both), *sweep)
            figures |= outcomes(kind, folder / f"{kind}_evaluation" / "rows.jsonl")
        out = ("--out", str(folder / "diagnosis"), "--overwrite")
        run("diagnose", flow, "--only", ",".join(DIAGNOSED), "--examples", "32", *out)
        table = json.loads((folder / "diagnosis" / "diagnostics.json").read_text())["table"]
        figures |= {key: table[key]["value"] for key in PROPERTIES if key in table}
        saved = SavedModel.from_pretrained(flow)
        positions, dimensions = saved.latent_shape()
        bits = np.log2(len(saved.tokenizer)) * saved.identity.block_size
        return figures | {"n": positions * dimensions, "bits_per_dimension": bits / (positions * dimensions)}

    def run(self, names: list[str], num_seeds: int) -> None:
        """Add the rows that are missing, all latents of a seed before the next seed."""
        done = {(row["latent"], row["source"], row["seed"]) for row in self.rows}
        for seed in range(num_seeds):
            for name in names:
                if (name, self.source, seed) in done:
                    continue
                print(f"== {name}, seed {seed}", flush=True)
                self.rows.append(self.row(name, seed))
                with self.file.open("a") as lines:
                    lines.write(json.dumps(self.rows[-1]) + "\n")


def run(*words: str) -> None:
    """A command of fewstep; ends the study where it fails."""
    print("fewstep " + " ".join(words), flush=True)
    if fewstep(list(words)):
        raise SystemExit(f"fewstep {words[0]} failed")


def outcomes(kind: str, file: Path) -> dict[str, float | None]:
    """Perplexity over shuffled words at real text's entropy and, of a grammar, the share of valid sentences."""
    rows = RowFile(file).read()
    plain = [row for row in rows if at_usual_temperature(row.setting)]
    values = [("shuffled_ratio", "", matched_rows(rows)), ("valid", "valid: ", plain)]
    return {
        f"{title}{kind}, gamma {row.setting['reinjection']}, K = {row.setting['num_steps']}": row.value(value)
        for value, title, of_value in values
        for row in of_value
        if row.setting["name"] == FLOW and (value != "valid" or row.value(value) is not None)
    }


def correlation(x: np.ndarray, y: np.ndarray) -> str:
    """Spearman's rank correlation (N,) with its 95 % percentile interval over resampled latents."""
    there = ~np.isnan(x) & ~np.isnan(y)  # "never" is the worst rank
    x, y = x[there], y[there]
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return ""
    with warnings.catch_warnings():  # a resample may hold one latent only
        warnings.simplefilter("ignore")
        rank = lambda a, b: spearmanr(a, b).statistic  # noqa: E731
        drawn = bootstrap((x, y), rank, paired=True, vectorized=False, n_resamples=2000, method="percentile", rng=0)
    low, high = np.nanpercentile(drawn.bootstrap_distribution, (2.5, 97.5))
    return f"{spearmanr(x, y).statistic:.2f} ({low:.2f} - {high:.2f})"


def means_of(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over seeds by latent and figure; infinite if a setting never gets to real text's entropy for some seed."""
    figures = dict.fromkeys(key for row in rows for key in row if key not in ("latent", "source", "seed"))
    means: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(row["latent"] for row in rows):
        of = {key: [row[key] for row in rows if row["latent"] == name and key in row] for key in figures}
        means[name] = {key: math.inf if None in of[key] else float(np.mean(of[key] or math.nan)) for key in figures}
    return means


def tables(rows: list[dict[str, Any]]) -> str:
    """A line for each latent: means over seeds, lowest and highest behind them; then the rank correlations."""
    means = means_of(rows)
    figures = [key for key in next(iter(means.values())) if key != "n"]
    results = [key for key in figures if key not in PROPERTIES]
    lines = ["| | " + " | ".join(means) + " |", "|---|" + "---|" * len(means)]
    for key in figures:
        cells = []
        for name in means:
            values = [row[key] for row in rows if row["latent"] == name and row.get(key) is not None]
            spread = f" ({min(values):.3g} - {max(values):.3g})" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3g}{spread}" if values else "never")
        lines.append(f"| {PROPERTIES.get(key, key)} | " + " | ".join(cells) + " |")
    lines += ["", "| rank correlation | " + " | ".join(results) + " |", "|---|" + "---|" * len(results)]
    for key, title in PROPERTIES.items():
        x = np.array([means[name].get(key, math.nan) for name in means])
        ranks = [correlation(x, np.array([means[name][result] for name in means])) for result in results]
        lines.append(f"| {title} | " + " | ".join(ranks) + " |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], outcome: str, file: Path) -> None:
    """Each property against one outcome, a mark for each latent and seed."""
    figure, axes = plt.subplots(2, 4, figsize=(13, 6), sharey=True, layout="constrained")
    for axis, (key, title) in zip(axes.flat, PROPERTIES.items(), strict=False):
        for number, name in enumerate(dict.fromkeys(row["latent"] for row in rows)):
            points = [(row.get(key), row.get(outcome)) for row in rows if row["latent"] == name]
            points = [(x, y) for x, y in points if x is not None and y is not None]
            axis.plot(*zip(*points, strict=True) if points else ([], []), "os^vDP*"[number % 7], label=name)
        axis.set_xlabel(title)
    axes[0, 0].set_yscale("log")
    axes[0, 0].set_ylabel(outcome)
    axes[1, 0].set_ylabel(outcome)
    axes.flat[-1].axis("off")
    axes.flat[-1].legend(*axes.flat[0].get_legend_handles_labels(), loc="center", frameon=False)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure what is missing, then print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/latents"))
    parser.add_argument("--source", default="everyday", help="a corpus as fewstep takes it; grammar adds valid shares")
    parser.add_argument("--only", default=",".join(LATENTS), help="names of latents, with commas between")
    parser.add_argument("--encoder", help="folder or hub name of the pretrained encoder; left out, that latent is too")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--size", help="debug for a trial run; left out, the steps of docs/findings/latents.md")
    parser.add_argument("--rows", type=Path, help="only print and draw the rows of this file")
    parser.add_argument("--draw", type=Path, help="picture of the properties against --outcome")
    parser.add_argument("--outcome", default="flow, gamma 0, K = 4")
    args = parser.parse_args()
    study = Study(args)
    if args.rows is None:
        args.out.mkdir(parents=True, exist_ok=True)
        study.run([name for name in args.only.split(",") if name != "pretrained" or args.encoder], args.seeds)
    rows = [row for row in study.rows if row["source"] == args.source]
    print(tables(rows))
    if args.draw:
        draw(rows, args.outcome, args.draw)


if __name__ == "__main__":
    main()
