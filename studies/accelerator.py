"""One command for an accelerator: train, sample, score and time on it for some minutes; one JSON file and one page.

    python studies/accelerator.py --minutes 8                        # in runs/accelerator; the same command resumes
    python studies/accelerator.py --minutes 8 --source notes.txt     # on your own text
    python studies/accelerator.py --minutes 1 --size debug           # a trial run, on a CPU too

The text is prepared first, outside of the minutes. Then every part gets its share of the time that is left. A stage is
``fewstep train fit``; a short trial run of it says how many steps its share has room for, and, on CUDA and where the
share is long enough, whether compiled blocks do more of them. Speeds are those of networks of the trained sizes with
random weights, in bfloat16 where the device has it. Without ``--size``: accelerator, on a CPU debug.
"""

import argparse
import csv
import gc
import json
import math
import os
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerator_page import write_page
from speed import GPT2, Clock, Networks, Work, ratio
from torch.utils.flop_counter import FlopCounterMode

from fewstep.cli.main import errors_to_exit_code
from fewstep.cli.main import main as fewstep
from fewstep.cli.output import make_folder, write_text
from fewstep.cli.quickstart import QuickstartOptions, arguments_of, max_documents
from fewstep.data.corpus import prepare_corpus
from fewstep.data.sources import CorpusSettings
from fewstep.errors import UserError, first_line
from fewstep.evaluation.rows import FLOW, RowFile
from fewstep.model import SavedModel, merge_models
from fewstep.objectives import FlowMatching
from fewstep.provenance import hardware, provenance
from fewstep.readouts import CausalTransformer
from fewstep.schedules import LogitNormalTime
from fewstep.settings import configs_folder, read_yaml, size_sections
from fewstep.storage import load_checkpoint
from fewstep.training.trainer_settings import emulates_bfloat16

Result = dict[str, Any]
STEPS, BATCHES, REPEATS = (1, 2, 4), (1, 16, 64), 5
STAGES = {"autoencoder": 3.0, "language_model": 2.0, "flow": 6.0, "distribution_matching": 3.0}
LENGTHS = {128: 0.7, 1024: 2.0}
SHARES = {"text": 1.0, **STAGES, "scores": 1.0, "rates": 0.5, "tests": 2.0}
SHARES |= {f"speed_{length}_{batch}": share for length, share in LENGTHS.items() for batch in BATCHES}
"""Shares of the time, of a speed by its length for every batch size."""
TRIAL_STEPS, COMPILE_SECONDS = 24, 240.0
"""A stage with less time is not tried with compiled blocks, whose compilation alone takes about a minute."""
PEAK_TFLOPS = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "A100": 312, "L40S": 362, "L4": 121}
"""Dense bfloat16 products by the maker's data sheets; the first whose words are in the card's name."""


class Study:
    """The results of one folder, kept in ``accelerator.json``; parts that are there are not done again.

    Raises ``UserError`` for a folder that was begun with another size, text or device.
    """

    def __init__(self, out: Path, size: str, source: str, line: str) -> None:
        self.out, self.file, self.device = out, out / "accelerator.json", pick_device()
        self.options = QuickstartOptions(out=out, size=size, source=source)
        self.dtype = torch.float32 if self.device == "cpu" and emulates_bfloat16() else torch.bfloat16
        settings = {"size": size, "source": source, "device": self.device, "card": card_name(self.device)}
        self.results: Result = {"settings": settings, "plans": {}, "parts": {}}
        if self.file.is_file():
            self.results = json.loads(self.file.read_text(encoding="utf-8"))
            if (begun := self.results["settings"]) != settings:
                raise UserError(f"--out {out} was begun with {begun}, this is {settings}: choose another --out")
        self.results["date"] = datetime.now().astimezone().isoformat(timespec="minutes")
        self.results["provenance"] = {**provenance("", ()), "command": f"python studies/accelerator.py {line}"}

    def save(self) -> None:
        """Write the JSON file."""
        write_text(self.file, json.dumps(self.results, indent=1) + "\n")

    def do(self, parts: dict[str, Callable[[float], Result]], seconds: float) -> None:
        """Do the parts that are not done; each is given its share of what is left of ``seconds``."""
        done, ends = self.results["parts"], time.perf_counter() + seconds
        for name, work in parts.items():
            if name in done:
                print(f"[accelerator] {name} is done already", flush=True)
                continue
            began = time.perf_counter()
            share = SHARES[name] / sum(SHARES[other] for other in parts if other not in done)
            given = max(0.0, ends - began) * share
            print(f"[accelerator] {name}: {given:.0f} s", flush=True)
            if self.device == "cuda":
                gc.collect()
                torch.cuda.reset_peak_memory_stats()
            result = work(given)
            done[name] = {**result, "seconds": time.perf_counter() - began, "peak_memory_gib": peak_memory(self.device)}
            self.save()

    def text(self, seconds: float) -> Result:
        """Prepare the text that all stages train on; tokens of a step, padding left out."""
        size = size_sections(str(self.options.size))["autoencoder"].get("data", {})
        data = read_yaml(configs_folder() / "autoencoder.yaml")["data"] | size
        data |= {"source": self.options.source, "cache_dir": self.options.cache_dir}
        own = {field.name: data[field.name] for field in fields(CorpusSettings) if field.name in data}
        settings = CorpusSettings(**own)
        corpus = prepare_corpus(settings)
        tokens = data["batch_size"] * float(corpus.train["length"][:].mean())
        samples = min(256, len(corpus.validation) - (settings.blocks == "packed"))  # whose last block may be padded
        sizes = {name: data[name] for name in ("batch_size", "block_size")}
        return {**sizes, "tokens_of_step": tokens, "samples": samples}

    def fit(self, stage: str, folder: Path, steps: int, log_every: int, *flags: str) -> None:
        """``fewstep train fit``, validated and sampled once, at the end. Ends the process where that fails."""
        words = ["train", *arguments_of(stage, self.options), f"--run_dir={folder}", *flags]
        words += [] if "--ckpt_path" in words else ["--overwrite"]
        words += [f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}", "--trainer.devices=1"]
        words += [f"--trainer.accelerator={'gpu' if self.device == 'cuda' else self.device}"]
        words += [f"--trainer.precision={'bf16-mixed' if self.dtype == torch.bfloat16 else '32-true'}"]
        words += [f"--trainer.log_every_n_steps={log_every}", "--trainer.num_sanity_val_steps=0"]
        self.call([*words, "--trainer.enable_progress_bar=false", "--diagnostics.every_n_validations=0"])

    def call(self, words: list[str]) -> None:
        """A command of fewstep. Ends the process with its exit code where it fails."""
        if code := fewstep(words):
            raise SystemExit(code)

    def trial(self, stage: str, *flags: str) -> Result:
        """Seconds of a step of a short run, and those that come on top: start, first step, validation, saving."""
        folder, began = self.out / "trials" / (f"{stage}_compiled" if flags else stage), time.perf_counter()
        self.fit(stage, folder, TRIAL_STEPS, 2, *flags)
        seconds = time.perf_counter() - began
        rates = logged(folder, "train/tokens_per_second")[1:]  # the first has the warm-up in it
        step = self.results["parts"]["text"]["tokens_of_step"] / statistics.median(rates)
        return {"step_seconds": step, "overhead_seconds": max(0.0, seconds - TRIAL_STEPS * step)}

    def plan(self, stage: str, seconds: float) -> Result:
        """Steps for ``seconds``, which the trial runs are part of, and whether blocks are compiled."""
        began, problem = time.perf_counter(), None
        trials = {"eager": self.trial(stage)}
        if self.device == "cuda" and seconds >= COMPILE_SECONDS:
            try:
                trials["compiled"] = self.trial(stage, "--compile.backend=inductor")
            except RuntimeError as error:  # a machine without a compiler trains all the same
                problem = f"{type(error).__name__}: {first_line(error)}"
        left = seconds - (time.perf_counter() - began)
        return {**best_plan(trials, left), "trials": trials, "problem": problem}

    def train(self, stage: str, seconds: float) -> Result:
        """Plan a stage and train it, or go on with it as planned."""
        folder, plans = self.out / stage, self.results["plans"]
        if stage not in plans:
            plans[stage] = self.plan(stage, seconds)
            self.save()
        plan = plans[stage]
        flags = ["--trainer.max_time=" + json.dumps({"seconds": plan["limit_seconds"]})]
        flags += ["--compile.backend=inductor"] if plan["compiled"] else []
        self.fit(stage, folder, plan["steps"], max(1, min(50, plan["steps"] // 10)), *flags)
        steps = load_checkpoint(folder / "checkpoints" / "last.ckpt")["global_step"]
        rate = statistics.median(logged(folder, "train/tokens_per_second"))
        return {"steps": steps, "planned_steps": plan["steps"], "compiled": plan["compiled"], "tokens_per_second": rate}

    def scores(self, seconds: float) -> Result:
        """``fewstep evaluate`` of the flow and of the few-step model, under the run's language model."""
        rows, limit = [], max_documents(self.options)
        sweep = f"--steps {','.join(map(str, STEPS))} --readout parallel --seeds 1 --matched_entropy 1"
        sweep += f" --samples {self.results['parts']['text']['samples']}"
        sweep += "" if limit is None else f" --max_documents {limit}"
        for name, stage, rule in (("flow", "flow", "0"), ("few-step model", "distribution_matching", "1")):
            folders = [str(self.out / part / "model") for part in ("language_model", stage)]
            bundle = merge_models([SavedModel.from_pretrained(folder) for folder in folders], folders)
            model, out = self.out / "scores" / stage / "model", self.out / "scores" / stage
            bundle.save_pretrained(model, overwrite=True)
            self.call(["evaluate", str(model), f"--out={out}", f"--reinjection={rule}", *sweep.split()])
            for row in RowFile(out / "rows.jsonl").read():
                is_sample = row.setting["name"] == FLOW
                if is_sample or not rows or "num_steps" not in rows[-1]:  # yardsticks once
                    values = {key: row.value(key) for key in ("perplexity", "entropy_nats")}
                    steps = {"num_steps": row.setting["num_steps"]} if is_sample else {}
                    text = {"text": name if is_sample else row.setting["name"], "examples": row.examples[:2]}
                    rows.append({**text, **steps, **values})
        return {"rows": rows}

    def rates(self, seconds: float) -> Result:
        """The device's rate of matrix products, measured and of the data sheet, and what the flow's steps use of it."""
        bundle = SavedModel.from_pretrained(self.out / "flow" / "model").to(self.device)
        text, rate = self.results["parts"]["text"], self.results["parts"]["flow"]["tokens_per_second"]
        ids = torch.zeros(text["batch_size"], text["block_size"], dtype=torch.long, device=self.device)
        mask, generator = torch.ones_like(ids, dtype=torch.bool), torch.Generator().manual_seed(0)

        def step() -> None:
            with torch.no_grad():
                latents = bundle.encoder().encode(ids, mask)
            objective = FlowMatching(LogitNormalTime())
            loss = objective.forward(bundle.flow(), latents, tokens=None, readout=None, generator=generator).loss
            loss.backward()

        side, card = 8192 if self.device == "cuda" else 1024, f" {card_name(self.device).replace('-', ' ')} "
        matrix = torch.randn(side, side, generator=generator).to(self.device, self.dtype)
        measured = 2 * side**3 / min(Clock(self.device).by_turns({"": lambda: matrix @ matrix}, 10)[""])
        peak = next((1e12 * value for name, value in PEAK_TFLOPS.items() if f" {name} " in card), None)
        used = count_flops(step) * rate / text["tokens_of_step"] / (peak or measured)
        return {"measured_flops": measured, "peak_flops": peak, "flow_utilisation": used}

    def speed(self, length: int, batch: int, seconds: float) -> Result:
        """Tokens a second at one length and batch size; left out where one round would take more than ``seconds``."""
        parts = self.results["parts"]
        shorter = [length / n * parts[f"speed_{n}_{batch}"]["round_seconds"] for n in LENGTHS if n < length]
        if shorter and shorter[0] > seconds:
            return {"left_out": f"a round takes about {shorter[0]:.0f} s, and {seconds:.0f} s were left for it"}
        networks = self.networks(length)
        # At a greater length the head's own passes are nearly all of its time.
        works = networks.works(batch, STEPS, STEPS[-1:] if shorter else STEPS)
        began, rows = time.perf_counter(), {}
        taken = Clock(self.device).by_turns(works, REPEATS, within=seconds)
        round_seconds = (time.perf_counter() - began) / (1 + len(taken[GPT2]))
        peak = parts["rates"]["peak_flops"] or parts["rates"]["measured_flops"]
        for name, times in taken.items():
            median = statistics.median(times)
            low, rate, high = (batch * length / value for value in (max(times), median, min(times)))
            rows[name] = {"tokens_per_second": rate, "lowest": low, "highest": high, "repeats": len(times)}
            rows[name]["times_gpt2"] = ratio(taken[GPT2], times)
            if name.startswith("parallel"):
                rows[name]["utilisation"] = count_flops(works[name]) / median / peak
        sizes = {"parameters": networks.num_parameters, "gpt2_parameters": networks.gpt2.num_parameters()}
        return {"rows": rows, "round_seconds": round_seconds, **sizes}

    def networks(self, length: int) -> Networks:
        """Networks of the trained sizes for blocks of ``length``; the head is the language model's with latents."""
        model = SavedModel.from_pretrained(self.out / "flow" / "model")
        denoiser, readout = model.parts()["denoiser"], model.parts()["readout"]
        language_model = SavedModel.from_pretrained(self.out / "language_model" / "model").parts()["language_model"]
        sizes = {key: readout.config[key] for key in ("latent_dim", "stride")}
        causal = CausalTransformer(**{**language_model.config, **sizes})
        longer = type(denoiser)(**{**denoiser.config, "num_positions": length // readout.stride})
        return Networks(longer, type(readout)(**readout.config), causal, self.device, self.dtype)

    def tests(self, seconds: float) -> Result:
        """The tests marked cuda, in a process of their own."""
        if self.device != "cuda":
            return {"left_out": "these tests are for CUDA"}
        words, root = ["-m", "pytest", "-q", "-m", "cuda", "tests/test_cuda.py"], Path(__file__).parents[1]
        limit = max(180.0, seconds)
        try:
            done = subprocess.run([sys.executable, *words], cwd=root, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return {"exit_code": None, "output": f"stopped after {limit:.0f} s"}
        return {"exit_code": done.returncode, "output": (done.stdout + done.stderr)[-4000:].strip()}


def best_plan(trials: dict[str, Result], left: float) -> Result:
    """The variant with most steps in ``left`` seconds; at least as many steps as a trial run has.

    ``limit_seconds``, of training, ends a stage whose steps take longer than in the trial.
    """
    steps = {name: (left - t["overhead_seconds"]) / t["step_seconds"] for name, t in trials.items()}
    best = max(steps, key=lambda name: steps[name])
    count = max(TRIAL_STEPS, int(steps[best]))
    limit = math.ceil(max(left, 2 * TRIAL_STEPS * trials[best]["step_seconds"], 1.0))
    return {"steps": count, "compiled": best == "compiled", "limit_seconds": limit}


def logged(run_dir: Path, name: str) -> list[float]:
    """The values of a metric in the CSV files of a run."""
    values = []
    for file in sorted(run_dir.glob("csv/version_*/metrics.csv")):
        with file.open(newline="", encoding="utf-8") as stream:
            values += [float(row[name]) for row in csv.DictReader(stream) if row.get(name)]
    return values


def pick_device() -> str:
    """ "cuda", "mps" or "cpu", the first that is there."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def card_name(device: str) -> str:
    """What the maker calls the device."""
    return torch.cuda.get_device_name() if device == "cuda" else f"{hardware()['processor']} ({device})"


def peak_memory(device: str) -> float:
    """GiB at the peak: of the part on CUDA, of the process so far elsewhere."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30


def count_flops(work: Work) -> int:
    """Floating-point operations of the matrix products and attention of one call."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def main(argv: list[str]) -> int:
    """Do what is not done yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything but the preparation of the text")
    parser.add_argument("--out", type=Path, default=Path("runs/accelerator"))
    parser.add_argument("--source", default="everyday", help="everyday, or a file of text")
    parser.add_argument("--size", choices=("accelerator", "debug"), help="of the networks")
    args = parser.parse_args(argv)
    os.environ.setdefault("WANDB_MODE", "disabled")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    on_cpu = pick_device() == "cpu"
    if on_cpu:
        torch.set_num_threads(1)  # whose seconds Clock counts
    make_folder(args.out)
    study = Study(args.out, args.size or ("debug" if on_cpu else "accelerator"), args.source, shlex.join(argv))
    study.do({"text": study.text}, 0.0)
    parts = {stage: partial(study.train, stage) for stage in STAGES} | {"scores": study.scores, "rates": study.rates}
    parts |= {f"speed_{n}_{b}": partial(study.speed, n, b) for n in LENGTHS for b in BATCHES}
    study.do(parts | {"tests": study.tests}, 60 * args.minutes)
    print(f"[accelerator] page {write_page(study.results, args.out)}, numbers {study.file}")
    return 0


if __name__ == "__main__":
    sys.exit(errors_to_exit_code(main, sys.argv[1:]))
