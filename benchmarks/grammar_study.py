"""Does few-step sampling break the choices that positions must make together? Counted by a grammar, not by a scorer.

    python benchmarks/grammar_study.py                        # everything, in runs/grammar; goes on where it stopped
    python benchmarks/grammar_study.py --do train --stages autoencoder,flow
    python benchmarks/grammar_study.py --do sample --max_rows 10
    python benchmarks/grammar_study.py --do table             # from the rows that are there

Autoencoder, flow, language model and commitment head are trained on the source ``grammar`` from their configs. Then
texts are sampled at several K in several ways, three seeds each, and judged by the grammar: one row a setting in
``rows.jsonl``. The control of re-injection is the deterministic flow with colder noise: ``table.md`` sets beside a
re-injected row what the deterministic flow has where its latents are as small (the same rms).
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from grammar_table import Row, write_table

from fewstep.cli.quickstart import STAGES
from fewstep.data import CorpusSettings, PreparedCorpus, prepare_corpus
from fewstep.evaluation.baselines import held_out_blocks, token_counts
from fewstep.evaluation.grammar import GrammarJudge, block_texts
from fewstep.evaluation.grammar_scores import GrammarMeasures
from fewstep.evaluation.row_file import RowFile
from fewstep.evaluation.sweep import model_digest
from fewstep.evaluation.sweep_row import Setting
from fewstep.evaluation.sweep_texts import Batch, FlowTexts, Made, TextGroup, flow_setting
from fewstep.evaluation.yardsticks import yardsticks
from fewstep.lab.theory.exact import ExactTexts, exact_flow, train_latents
from fewstep.model import SavedModel, merge_models
from fewstep.pipeline import TextGenerator
from fewstep.readouts import READOUTS
from fewstep.settings import configs_folder
from fewstep.shapes import example_generators
from fewstep.training.command import run_training

STEPS = {"autoencoder": 1400, "flow": 2100, "language_model": 1000, "head": 2100}
"""Training steps; of 32 blocks each."""
WAYS = (
    (0.0, 1.0, ("parallel", "head", "head_off")),
    (1.0, 1.0, ("parallel", "head")),
    (0.5, 1.0, ("parallel",)),
    *((0.0, temperature, ("parallel",)) for temperature in (0.9, 0.8, 0.7, 0.6)),
)
"""Strength of re-injection, factor on the old noise, readouts."""
PIECES = ("train", "sample", "table")


def main() -> None:
    """Do the pieces asked for, in their order."""
    args = parser().parse_args()
    if args.size and args.max_documents is None:
        args.max_documents = 2000
    torch.set_num_threads(args.threads)
    pieces = args.do.split(",")
    if strangers := set(pieces) - set(PIECES):
        raise SystemExit(f"--do {args.do}: {', '.join(strangers)} unknown; expected some of {', '.join(PIECES)}")
    if "train" in pieces:
        train(args)
    if "sample" in pieces:
        sample(args)
    if "table" in pieces:
        write_table(args.out)


def parser() -> argparse.ArgumentParser:
    """The options."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--out", type=Path, default=Path("runs/grammar"), help="folder of everything")
    result.add_argument("--do", default=",".join(PIECES), help="pieces, by commas")
    result.add_argument("--source", default="grammar", help="grammar, or grammar:N with blocks of N + 1 tokens")
    result.add_argument("--stages", default=",".join(STEPS), help="stages to train, by commas")
    result.add_argument("--size", help="debug (with --source grammar:15), or a file of sizes; steps are then its own")
    result.add_argument("--flow_steps", type=int, default=STEPS["flow"], help="training steps of the flow")
    result.add_argument("--head_steps", type=int, default=STEPS["head"], help="training steps of the head")
    result.add_argument("--steps", default="1,2,4,8,16,32", help="numbers of sampling steps, by commas")
    result.add_argument("--samples", type=int, default=256, help="samples a setting and seed")
    result.add_argument("--seeds", type=int, default=3)
    result.add_argument("--exact", type=int, default=16384, help="train latents of the exact denoiser; 0: leave it out")
    result.add_argument("--widths", default="0,0.7", help="widths h of its latents, by commas")
    result.add_argument("--max_documents", type=int, help="sentences used; all where left out, 2000 with --size")
    result.add_argument("--max_rows", type=int, help="stop after so many new settings")
    result.add_argument("--cache_dir", default="~/.cache/fewstep")
    result.add_argument("--threads", type=int, default=2)
    return result


def train(args: argparse.Namespace) -> None:
    """The stages that have no model yet; a stopped one goes on from its checkpoint."""
    for stage, (_, inputs) in STAGES.items():
        folder = args.out / stage
        if stage not in args.stages.split(",") or (folder / "model" / "config.json").is_file():
            continue
        arguments = ["fit", "--config", str(configs_folder() / f"{stage}.yaml")]
        if args.size:
            arguments += ["--size", args.size]
        else:
            steps = {**STEPS, "flow": args.flow_steps, "head": args.head_steps}[stage]
            arguments += [f"--trainer.max_steps={steps}", "--trainer.val_check_interval=350"]
        if args.max_documents is not None:
            arguments.append(f"--data.max_documents={args.max_documents}")
        arguments += [f"--run_dir={folder}", f"--data.source={args.source}", f"--data.cache_dir={args.cache_dir}"]
        arguments += [flag.format(out=args.out) for flag in inputs]
        if (folder / "checkpoints" / "last.ckpt").is_file():
            arguments += ["--ckpt_path", "last"]
        run_training(arguments)


def sample(args: argparse.Namespace) -> None:
    """The settings that have no row yet, one line of ``rows.jsonl`` each."""
    file = RowFile(args.out / "rows.jsonl", Row)
    study = Study(args)
    done = {row.key for row in file.read()}
    for new, row in enumerate(study.rows(done), 1):
        file.append(row)
        print(f"{row.name} {row.readout or ''} K={row.num_steps} gamma={row.reinjection} T={row.noise_temperature}: ")
        print(f"  valid {row.scores.valid.value:.3f}, {row.seconds:.0f} s; {row.examples[0]}", flush=True)
        if args.max_rows is not None and new >= args.max_rows:
            return


class Study:
    """Model, corpus and grammar, and the texts of all settings."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        folders = [str(args.out / name / "model") for name in ("head", "language_model")]
        self.bundle = merge_models([SavedModel.from_pretrained(folder) for folder in folders], folders).to("cpu")
        self.bundle.save_pretrained(args.out / "model", overwrite=True)
        self.corpus: PreparedCorpus = prepare_corpus(
            CorpusSettings(
                source=args.source,
                tokenizer=str(args.out / "model" / "tokenizer"),
                block_size=self.bundle.identity.block_size,
                max_documents=args.max_documents,
                cache_dir=args.cache_dir,
            )
        )
        self.judge = GrammarJudge(args.source)
        self.measures = GrammarMeasures(self.judge.law)
        self.model = model_digest(self.bundle)
        self.train_ids = torch.from_numpy(self.corpus.train[:]["input_ids"].astype("int64"))
        if not bool((self.train_ids[:, -1] == self.bundle.tokenizer.eos_token_id).all()):
            raise SystemExit(
                f"blocks of {self.train_ids.shape[1]} tokens do not hold one sentence of {args.source} each: give "
                "grammar:N with N one less, and enough sentences for a tokenizer that knows every word"
            )
        self.train_rows = {row.tobytes() for row in self.train_ids.int().numpy()}

    def rows(self, done: set[tuple[object, ...]]) -> Iterator[Row]:
        """Yardsticks, then latents of real text read back, then the flow."""
        total = self.args.samples * self.args.seeds
        held_out, _ = held_out_blocks(self.corpus.validation, min(total, len(self.corpus.validation)))
        counts = token_counts(self.corpus.train, self.corpus.report.vocabulary)
        if len(held_out.ids) == total:
            beside = yardsticks(self.bundle, held_out, counts, self.args.samples, seed=0)
            for group in [*beside, *(ReadBack(self.bundle, held_out.ids, self.args.samples, one) for one in READ)]:
                yield from self._group(group, None, None, done)
        for num_steps in map(int, self.args.steps.split(",")):
            for reinjection, temperature, readouts in WAYS:
                if num_steps == 1 and (reinjection, temperature) != (0.0, 1.0):
                    continue  # nothing is made of the old noise in the only step
                setting = flow_setting(num_steps, f"{reinjection:g}", temperature)
                texts = FlowTexts(TextGenerator(self.bundle), setting, readouts, reinjection)
                yield from self._group(texts, reinjection, temperature, done)
        if self.args.exact:
            yield from self._exact(done)

    def _exact(self, done: set[tuple[object, ...]]) -> Iterator[Row]:
        """The exact denoiser of as many train latents as asked for, deterministic and re-injected."""
        latents = train_latents(self.bundle, self.train_ids[: self.args.exact])
        for h in map(float, self.args.widths.split(",")):
            flow = exact_flow(self.bundle, latents, h)
            for num_steps in map(int, self.args.steps.split(",")):
                for reinjection in (0.0,) if num_steps == 1 else (0.0, 1.0):
                    texts = ExactTexts(self.bundle, flow, num_steps, reinjection, ("parallel",))
                    yield from self._group(texts, reinjection, 1.0, done)

    def _group(
        self, group: TextGroup, reinjection: float | None, temperature: float | None, done: set[tuple[object, ...]]
    ) -> Iterator[Row]:
        """The rows of texts that are made together, without those that are done."""
        samples, seeds = self.args.samples, self.args.seeds
        settings = [
            one
            for one in group.settings
            if (one.name, one.readout, one.num_steps, reinjection, temperature, self.model, samples, seeds) not in done
        ]
        if not settings:
            return
        batches = [
            Batch(seed, seed, first, min(64, samples - first))
            for seed in range(seeds)
            for first in range(0, samples, 64)
        ]
        made = [group.make(batch, settings) for batch in batches]
        owners = [batch.seed for batch in batches for _ in range(batch.count)]
        for setting, parts in zip(settings, zip(*made, strict=True), strict=True):
            yield self._row(setting, parts, owners, reinjection, temperature)

    def _row(
        self,
        setting: Setting,
        parts: tuple[Made, ...],
        owners: list[int],
        reinjection: float | None,
        temperature: float | None,
    ) -> Row:
        ids = torch.cat([part.ids for part in parts])
        texts = block_texts(self.bundle.tokenizer, ids)
        latents = [part.x_1 for part in parts if part.x_1 is not None]
        return Row(
            name=setting.name,
            readout=setting.readout,
            num_steps=setting.num_steps,
            reinjection=reinjection,
            noise_temperature=temperature,
            scores=self.measures.scores(self.judge.judge(texts), owners),
            copied=sum(row.tobytes() in self.train_rows for row in ids.int().numpy()) / len(ids),
            latent_rms=float(torch.cat(latents).double().square().mean().sqrt()) if latents else None,
            nfe=parts[0].nfe,
            seconds=sum(part.seconds or 0.0 for part in parts),
            model=self.model,
            samples=self.args.samples,
            seeds=self.args.seeds,
            examples=tuple(texts[:3]),
            distinct_texts=len(set(texts)),
        )


READ = ("parallel", "head")


class ReadBack:
    """Held-out text ``ids`` (N, L) encoded and read again: what a readout loses without any sampling."""

    def __init__(self, bundle: SavedModel, ids: torch.Tensor, num_samples: int, readout: str) -> None:
        self.settings: tuple[Setting, ...] = (Setting("read back", readout),)
        self.bundle, self.ids, self.num_samples = bundle, ids, num_samples
        self.choice = READOUTS[readout]

    @torch.no_grad()
    def make(self, batch: Batch, settings: list[Setting]) -> list[Made]:
        """The batch's rows; see :class:`fewstep.evaluation.sweep_texts.TextGroup`."""
        start = batch.seed_index * self.num_samples + batch.first
        ids = self.ids[start : start + batch.count]
        assert self.bundle.autoencoder is not None
        latents = self.bundle.autoencoder.encode(ids, torch.ones_like(ids, dtype=torch.bool))
        drawn = self.bundle.open_readout(self.choice).generate(
            latents.z,
            latents.mask,
            temperature=self.choice.temperature,
            top_p=1.0,
            top_k=None,
            ending=None,
            generator=example_generators(batch.seed, batch.first, batch.count),
        )
        return [Made(drawn.ids, x_1=latents.z) for _ in settings]


if __name__ == "__main__":
    main()
