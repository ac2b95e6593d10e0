"""Which samplers write sentences that a grammar allows: trained on the source ``grammar``, judged without a scorer.

    python studies/grammar.py                       # half an hour of training and sampling on two cores; resumes
    python studies/grammar.py --size debug --source grammar:15 --samples 8        # a trial run

Every step is a command of fewstep, so that the same can be done by hand: the four stages from their shipped settings,
``fewstep convert`` to one model, and ``fewstep evaluate`` over steps, re-injection, colder noise and readouts. The
columns of the grammar (share of valid sentences, what is broken, distance of branch frequencies) are those that
``fewstep evaluate`` adds for any model of this corpus.
"""

import argparse
from pathlib import Path

from fewstep.cli.main import main as fewstep

STEPS = {"autoencoder": 1400, "flow": 2100, "language_model": 1000, "head": 2100}
INPUTS = {
    "flow": ("--model.autoencoder={out}/autoencoder/model",),
    "language_model": ("--data.tokenizer={out}/autoencoder/model/tokenizer",),
    "head": ("--model.autoencoder={out}/flow/model", "--model.language_model={out}/language_model/model"),
}
"""What a stage takes from earlier ones."""
SWEEPS = {
    "contrast": ("--reinjection", "0,1", "--readout", "parallel,head,head_off"),
    "half": ("--reinjection", "0.5", "--readout", "parallel"),
    "colder": ("--reinjection", "0", "--readout", "parallel", "--noise_temperature", "0.9,0.8,0.7,0.6"),
}


def run(*words: str) -> None:
    """A command of fewstep; ends the study where it fails."""
    print("fewstep " + " ".join(words), flush=True)
    if fewstep(list(words)):
        raise SystemExit(f"fewstep {words[0]} failed")


def main() -> None:
    """Train what is not there yet, then sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/grammar"))
    parser.add_argument("--source", default="grammar", help="grammar, or grammar:N with blocks of N + 1 tokens")
    parser.add_argument("--size", help="debug; left out, the steps of docs/findings/grammar.md")
    parser.add_argument("--max_documents", type=int, help="sentences used; 2000 with --size")
    parser.add_argument("--steps", default="1,2,4,8,16,32")
    parser.add_argument("--samples", type=int, default=128, help="samples a setting and seed")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    limit = args.max_documents or (2000 if args.size else None)
    documents = [] if limit is None else [f"--data.max_documents={limit}"]
    for stage, num_steps in STEPS.items():
        folder = args.out / stage
        if (folder / "model" / "config.json").is_file():
            continue
        length = ["--size", args.size] if args.size else [f"--trainer.max_steps={num_steps}"]
        inputs = [flag.format(out=args.out) for flag in INPUTS.get(stage, ())]
        resume = ["--ckpt_path", "last"] if (folder / "checkpoints" / "last.ckpt").is_file() else []
        shared = [f"--run_dir={folder}", f"--data.source={args.source}", *documents]
        run("train", "fit", "--config", stage, *length, *shared, *inputs, *resume)
    model = args.out / "model"
    if not (model / "config.json").is_file():
        run("convert", *(str(args.out / stage / "model") for stage in ("head", "language_model")), str(model))
    few = ["--steps", args.steps, "--samples", str(args.samples), "--seeds", str(args.seeds)]
    few += [] if limit is None else ["--max_documents", str(limit)]
    for name, axes in SWEEPS.items():
        run("evaluate", str(model), *axes, *few, "--out", str(args.out / name))


if __name__ == "__main__":
    main()
