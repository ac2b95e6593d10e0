"""Which samplers write sentences that a grammar allows: trained on the source ``grammar``, judged without a scorer.

    python studies/grammar.py                       # half an hour of training and sampling on two cores; resumes
    python studies/grammar.py --size debug --source grammar:15 --samples 8        # a trial run
    python studies/grammar.py --flow_steps 2100,20000 --out runs/grammar_longer  # does more training mend it? 1.5 hours

Every step is a command of fewstep, so that the same can be done by hand: the four stages from their shipped settings,
``fewstep convert`` to one model, and ``fewstep evaluate`` over steps, re-injection, colder noise and readouts. The
columns of the grammar (share of valid sentences, what is broken, distance of branch frequencies) are those that
``fewstep evaluate`` adds for any model of this corpus.
"""

import argparse
from pathlib import Path

from latents import run

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


class Study:
    """Commands of fewstep that fill one folder; what is trained already is left as it is."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.out = args, args.out
        self.text = ("--max_documents", "2000") if args.size else ()
        self.data = (f"--data.source={args.source}", *(("--data.max_documents=2000",) if args.size else ()))

    def train(self, stage: str, num_steps: int, *flags: str, name: str = "") -> Path:
        """The model folder of a stage trained for ``num_steps``, in a folder of its own ``name`` if it has one."""
        folder = self.out / (name or stage)
        if not (folder / "model" / "config.json").is_file():
            length = ["--size", self.args.size] if self.args.size else [f"--trainer.max_steps={num_steps}"]
            inputs = [flag.format(out=self.out) for flag in (*INPUTS.get(stage, ()), *flags)]
            resume = ["--ckpt_path", "last"] if (folder / "checkpoints" / "last.ckpt").is_file() else []
            run("train", "fit", "--config", stage, *inputs, *length, *self.data, f"--run_dir={folder}", *resume)
        return folder / "model"

    def evaluate(self, models: list[Path], name: str, rows: str, steps: str, *axes: str) -> None:
        """Merge ``models`` into the folder ``name`` if it is missing, and sweep it; rows go to the folder ``rows``."""
        merged = self.out / name
        if not (merged / "config.json").is_file():
            run("convert", *map(str, models), str(merged))
        few = ("--samples", str(self.args.samples), "--seeds", str(self.args.seeds), *self.text)
        run("evaluate", str(merged), *axes, "--steps", steps, *few, "--out", str(self.out / rows))

    def longer(self, flow_steps: list[int]) -> None:
        """Flows of several lengths of training on chunks of tokens, then distribution matching on the longest."""
        self.train("autoencoder", STEPS["autoencoder"], "--config", "latents/chunks")
        scorer = self.train("language_model", STEPS["language_model"])
        parallel = ("--readout", "parallel", "--reinjection")
        for num_steps in flow_steps:
            flow = self.train("flow", num_steps, name=f"flow_{num_steps}")
            self.evaluate([flow, scorer], name := f"longer_{num_steps}", f"{name}_evaluation", "4,32", *parallel, "0,1")
        student = self.train("distribution_matching", 100, f"--model.autoencoder={flow}")
        self.evaluate([student, scorer], "matched", "matched_evaluation", "1,2,4", *parallel, "1")


def main() -> None:
    """Train what is not there yet, then sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/grammar"))
    parser.add_argument("--source", default="grammar", help="grammar, or grammar:N with blocks of N + 1 tokens")
    parser.add_argument("--size", help="debug, with 2000 sentences; left out, the steps of docs/findings/grammar.md")
    parser.add_argument("--steps", default="1,2,4,8,16,32")
    parser.add_argument("--samples", type=int, default=128, help="samples a setting and seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--flow_steps", help="numbers with commas: train flows that long, on chunks of 4 tokens")
    args = parser.parse_args()
    study = Study(args)
    if args.flow_steps:
        study.longer([int(number) for number in args.flow_steps.split(",")])
        return
    models = {stage: study.train(stage, num_steps) for stage, num_steps in STEPS.items()}
    for name, axes in SWEEPS.items():
        study.evaluate([models["head"], models["language_model"]], "model", name, args.steps, *axes)


if __name__ == "__main__":
    main()
