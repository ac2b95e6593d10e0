"""``fewstep quickstart``: all stages, samples and the table, in one folder."""

import os
import resource
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import PositiveInt

from fewstep.cli.common import TextOptions, comma_rules, corpus_of, sweep_temperatures, write_tables
from fewstep.cli.output import progress_bar, write_text
from fewstep.cli.parser import parse_options
from fewstep.errors import UserError
from fewstep.provenance import provenance
from fewstep.settings import configs_folder, read_yaml, size_sections

if TYPE_CHECKING:
    from fewstep.evaluation.rows import Row

BUILT_IN = "sotu"
STEPS = (1, 2, 4, 8, 32)
FEW_STEPS, RENEWED = (1, 2, 4, 8), "1"
MEASURES = ("scores", "repetition", "late_flips", "rms")


@dataclass(frozen=True)
class Stage:
    """What a stage is for, and the flags of its inputs; ``beside``: in a process of its own, while the next ones train.

    A stage is called like its settings and its folder.
    """

    purpose: str
    flags: tuple[str, ...] = ()
    beside: bool = False


STAGES = {
    "language_model": Stage("learn the text token by token: the baseline, and the scorer", beside=True),
    "autoencoder": Stage("learn latents of text, and to read them back under noise"),
    "head": Stage(
        "learn to read latents token by token, starting from the language model: the commitment head",
        ("--model.autoencoder={out}/autoencoder/model", "--model.language_model={out}/language_model/model"),
        beside=True,
    ),
    "flow": Stage("learn to carry noise to latents", ("--model.autoencoder={out}/autoencoder/model",)),
    "distribution_matching": Stage(
        "learn to do so in few steps, so that the samples follow the law of the data",
        ("--model.autoencoder={out}/flow/model",),
    ),
}
"""In an order in which every stage stands after its inputs. Two stages without a common input train side by side."""


@dataclass(kw_only=True)
class QuickstartOptions:
    """Train all stages on text, sample, and score the samples.

    Args:
        out: folder for everything.
        size: quickstart, debug, hour, base or a YAML file.
        source: the text: everyday, sotu, a file, a folder or a hub data set; left out, that of the folder, else
            everyday, or sotu for size debug and where everyday cannot be downloaded.
        num_samples: samples per row of the table.
        reinjection: strengths and rules of re-injection in the table, as in fewstep evaluate; by default the
            deterministic flow, and fresh noise after every step.
        cache_dir: folder for prepared text.
        matched_entropy: temperatures from which the table at real text's entropy comes, as in fewstep evaluate.
    """

    out: Path = Path("runs/quickstart")
    size: str = "quickstart"
    source: str | None = None
    num_samples: PositiveInt = 128
    reinjection: list[float | str] = field(default_factory=lambda: ["0,1"])
    cache_dir: str = "~/.cache/fewstep"
    matched_entropy: list[float] | float | str = "0.8,1,1.2,1.4"


def main(argv: list[str]) -> int:
    """Run the stages that are not done yet, then sample and score. Returns the exit code."""
    options = parse_options("quickstart", QuickstartOptions, argv)
    size_sections(options.size)  # a typo shows before any work
    comma_rules(options.reinjection)
    sweep_temperatures(options.matched_entropy)
    start = time.perf_counter()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    options.source = choose_source(options)
    say(f"text {options.source}, writing to {options.out}; the same command resumes an interrupted run")
    train_stages(options)
    say(f"stage {len(STAGES) + 1} of {len(STAGES) + 1}: sample at K = {', '.join(map(str, STEPS))} and score")
    sample_and_score(options, provenance("quickstart", argv))
    out, model = options.out, options.out / "model"
    print(f"\nmodel     {model}   (fewstep sample {model} --steps 32, fewstep diagnose {model})")
    print(f"few steps {out / 'few_step_model'}   (fewstep sample {out / 'few_step_model'} --steps 2)")
    print(f"table     {out / 'table.md'}, {out / 'table.csv'}, rows {out / 'rows.jsonl'}, pictures {out / '*.png'}")
    print(f"samples   {out / 'samples.txt'}")
    print(f"runs      {', '.join(str(out / stage) for stage in STAGES)}")
    unit = 1 if sys.platform == "darwin" else 1024  # KiB on Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    say(f"{time.perf_counter() - start:.0f} s in all, peak memory {peak / 2**30:.1f} GiB")
    return 0


def choose_source(options: QuickstartOptions) -> str:
    """The text of ``options.out`` if that was begun, else as given, else everyday English or what stands in for it."""
    from fewstep.data.everyday import EVERYDAY, everyday_file

    begun = [file for stage in STAGES if (file := options.out / stage / "config.yaml").is_file()]
    if begun:
        source = str(read_yaml(begun[0])["data"]["init_args"]["source"])
        if options.source not in (None, source):
            raise UserError(
                f"--source {options.source}: {options.out} was begun with {source}; leave --source out, or choose "
                "another --out"
            )
        return source
    if options.source is not None:
        return options.source
    if max_documents(options) is not None:  # a few sentences are no text to train on
        return BUILT_IN
    try:
        everyday_file(Path(options.cache_dir).expanduser())
    except UserError as error:
        say(f"WARNING: using {BUILT_IN}, speeches, in place of {EVERYDAY} English: {error}")
        return BUILT_IN
    return EVERYDAY


def max_documents(options: QuickstartOptions) -> int | None:
    """How many documents the size takes at most: with the same number held-out text stays held out."""
    return size_sections(options.size).get("autoencoder", {}).get("data", {}).get("max_documents")


def train_stages(options: QuickstartOptions) -> None:
    """Train the stages that are not done yet, those beside the flow in one other process at a time."""
    import torch

    from fewstep.training.command import run_training
    from fewstep.training.trainer_settings import emulates_bfloat16

    faster = ["--trainer.precision=32-true"] if emulates_bfloat16() else []
    threads = torch.get_num_threads()
    beside = Beside(options.out, max(1, threads // 2))
    try:
        for number, (name, stage) in enumerate(STAGES.items(), 1):
            say(f"stage {number} of {len(STAGES) + 1}, {name}: {stage.purpose}")
            if (options.out / name / "model" / "config.json").is_file():
                say(f"{name} is done already, see {options.out / name}")
            elif stage.beside:
                beside.start(name, arguments_of(name, options) + faster)
            else:
                torch.set_num_threads(beside.threads if beside.runs else threads)
                began = time.perf_counter()
                run_training(arguments_of(name, options) + faster)
                say(f"{name} took {time.perf_counter() - began:.0f} s")
        beside.wait()
    finally:
        beside.stop()
        torch.set_num_threads(threads)


def arguments_of(name: str, options: QuickstartOptions) -> list[str]:
    """The arguments of ``fewstep train`` for a stage; an interrupted run is resumed."""
    run_dir = options.out / name
    arguments = ["fit", "--config", str(configs_folder() / f"{name}.yaml"), "--size", options.size]
    arguments += [f"--run_dir={run_dir}", f"--data.source={options.source}", f"--data.cache_dir={options.cache_dir}"]
    arguments += [flag.format(out=options.out) for flag in STAGES[name].flags]
    if (run_dir / "checkpoints" / "last.ckpt").is_file():
        arguments += ["--ckpt_path", "last"]
    return arguments


class Beside:
    """Trains stages one after another, each in a process of its own with ``threads``, which prints into a log."""

    def __init__(self, out: Path, threads: int) -> None:
        self.out, self.threads = out, threads
        self.queue = ThreadPoolExecutor(max_workers=1)
        self.stages: list[Future[None]] = []
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        """Whether a stage is not done yet. Raises ``UserError`` if one failed."""
        for stage in self.stages:
            if stage.done():
                stage.result()
        return not all(stage.done() for stage in self.stages)

    def start(self, name: str, arguments: list[str]) -> None:
        """Train a stage as soon as those before it have ended."""
        say(f"{name} trains beside the next stages, its output is in {self.out / f'{name}.log'}")
        self.stages.append(self.queue.submit(self._train, name, arguments))

    def _train(self, name: str, arguments: list[str]) -> None:
        began, file = time.perf_counter(), self.out / f"{name}.log"
        self.out.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as log:
            command = [sys.executable, "-m", "fewstep", "train", *arguments]
            threads = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
            self.process = subprocess.Popen(command, env=threads, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if code := self.process.wait():
            *_, last = ["", *file.read_text(encoding="utf-8", errors="replace").strip().splitlines()]
            raise UserError(f"{name} ended with exit code {code}: {last.removeprefix('fewstep: error: ')}")
        say(f"{name} took {time.perf_counter() - began:.0f} s")

    def wait(self) -> None:
        """Wait for all stages. Raises ``UserError`` with the last line of one that failed."""
        for stage in self.stages:
            stage.result()

    def stop(self) -> None:
        """End what still runs; it leaves a checkpoint."""
        self.queue.shutdown(wait=False, cancel_futures=True)
        if self.process is not None:
            self.process.terminate()
            self.process.wait()


def sample_and_score(options: QuickstartOptions, recipe: dict[str, Any]) -> None:
    """Merge the stages into two models, evaluate them, and write tables and pictures. ``recipe``: provenance."""
    from fewstep.evaluation.charts import STEPS as OVER_STEPS
    from fewstep.evaluation.charts import score_pictures
    from fewstep.evaluation.frontier import write_frontier
    from fewstep.evaluation.pictures import write_pictures
    from fewstep.evaluation.rows import RowFile
    from fewstep.evaluation.scorers import RunScorer
    from fewstep.evaluation.sweep import Sweep, model_digest
    from fewstep.evaluation.text_plan import TextStudy, real_text
    from fewstep.evaluation.texts import Sampling, flow_groups
    from fewstep.model import SavedModel, merge_models

    names = ("flow", "head", "language_model", "distribution_matching")
    folders = {name: str(options.out / name / "model") for name in names}
    models = {name: SavedModel.from_pretrained(folder) for name, folder in folders.items()}

    def merged(*names: str) -> SavedModel:
        return merge_models([models[name] for name in names], [folders[name] for name in names])

    bundle = merged("flow", "head", "language_model")
    few_step = merged("head", "language_model", "distribution_matching")  # of two flows the later is taken
    text = TextOptions(source=options.source, max_documents=max_documents(options), cache_dir=options.cache_dir)
    corpus = corpus_of(bundle, text)
    count = min(options.num_samples, len(corpus.validation))
    scorer = RunScorer(bundle.scorer(), bundle.tokenizer)
    packed = None if bundle.identity.blocks == "packed" else False
    study = TextStudy(bundle, scorer, real_text(corpus, bundle.identity.source, count, packed=packed), count, (0,))
    samplings = [Sampling(steps, rule) for rule in comma_rules(options.reinjection) for steps in STEPS]
    temperatures = sweep_temperatures(options.matched_entropy)
    yardsticks = study.yardsticks(language_model_offset=3, temperatures=temperatures)
    readouts = ("parallel", "mask_predict", "head")
    flows = flow_groups(bundle, samplings, readouts, temperatures)
    few = [Sampling(steps, RENEWED) for steps in FEW_STEPS]
    flows += flow_groups(few_step, few, readouts, temperatures, name="distribution matching")
    plan = study.plan([*yardsticks, *flows], MEASURES, recipe)
    plan = replace(plan, protocol={**plan.protocol, "few_step_model": model_digest(few_step)})
    with progress_bar("sampling and scoring", "row") as progress:
        rows = Sweep(plan).run(RowFile(options.out / "rows.jsonl"), progress, renew=True)
    plain, table, shown = write_tables(rows, plan.caption, plan.columns, options.out)
    write_text(options.out / "samples.txt", sentences(plain))
    write_frontier(rows, scorer.name, options.out / "frontier.png")
    write_pictures(score_pictures(plain, OVER_STEPS, scorer.name), options.out / "table.png")
    bundle.save_pretrained(options.out / "model", overwrite=True, scores=table)
    few_step.save_pretrained(options.out / "few_step_model", overwrite=True, scores=table)
    print(f"{sentences(plain)}\n{shown}")


def sentences(rows: "list[Row]") -> str:
    """A few texts of every row, one per line."""
    lines = []
    for row in rows:
        title = str(row.setting["name"])
        if "num_steps" in row.setting:
            title += ", {readout} readout, K = {num_steps}, gamma = {reinjection}".format(**row.setting)
        lines += ["", title, *(f"  | {' '.join(text.split())}" for text in row.examples[:2])]
    return "\n".join([*lines, ""])


def say(text: str) -> None:
    """One line of the quickstart's own."""
    print(f"[quickstart] {text}", flush=True)
