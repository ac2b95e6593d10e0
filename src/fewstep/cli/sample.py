"""``fewstep sample``: text from a saved model."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fewstep.cli.arguments import OneLineParser, at_least_one
from fewstep.cli.device import pick_device
from fewstep.cli.output import new_text_file
from fewstep.errors import UserError
from fewstep.provenance import provenance

if TYPE_CHECKING:
    from fewstep.pipeline import GeneratedText


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    result = OneLineParser("fewstep sample", "Write text with a saved model.")
    result.add_argument("path", help="a model folder, or a .ckpt file of the flow or a later stage")
    result.add_argument("--num_samples", type=at_least_one, default=8, help="how many texts (default: %(default)s)")
    result.add_argument(
        "--steps", type=at_least_one, default=4, help="steps from noise to latents (default: %(default)s)"
    )
    result.add_argument("--seed", type=int, default=0, help="the same seed gives the same texts (default: %(default)s)")
    result.add_argument(
        "--readout",
        choices=("parallel", "head"),
        default="parallel",
        help="all tokens at once, or one after the other by the commitment head (default: %(default)s)",
    )
    result.add_argument(
        "--head_context",
        choices=("on", "off"),
        default="on",
        help="off: --readout head without its view of earlier tokens, for comparison (default: %(default)s)",
    )
    _add_sampler_options(result)
    _add_draw_options(result)
    result.add_argument(
        "--batch_size",
        type=at_least_one,
        default=64,
        help="texts made at a time; changes speed only (default: %(default)s)",
    )
    result.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the model runs (default: %(default)s)"
    )
    result.add_argument("--output", help="a .jsonl file to write; left out: the texts are printed")
    result.add_argument("--overwrite", action="store_true", help="replace the output file where it exists")
    return result


def _add_draw_options(parser: argparse.ArgumentParser) -> None:
    """How latents become tokens."""
    parser.add_argument(
        "--temperature",
        type=float,
        help="of the readout's draw, 0 takes the likeliest token; left out: 0 for parallel, 1 for head",
    )
    parser.add_argument(
        "--top_p",
        type=float,
        default=1.0,
        help="draw from the likeliest tokens of this total mass (default: %(default)s)",
    )
    parser.add_argument("--top_k", type=at_least_one, help="draw from this many likeliest tokens; left out: from all")
    parser.add_argument("--stop", action="store_true", help="end a text at its first end-of-text token")


def _add_sampler_options(parser: argparse.ArgumentParser) -> None:
    """How noise becomes latents."""
    parser.add_argument(
        "--reinjection",
        default="0",
        metavar="NUMBER|NAME[:NUMBER,...]",
        help="share of fresh noise in each step, 0 none, 1 all (default: %(default)s), or a rule: linear or "
        "cosine:FIRST,LAST; window:STRENGTH,BEGIN,END; listed:STRENGTH,...; "
        "ancestral:ETA; churn:CHURN,MIN,MAX; by_position:STRENGTH (where the parallel readout is undecided); "
        "elf:GAMMA and its control elf_cooling:GAMMA; or the dotted path of your own, package.module.rule:NUMBER,...",
    )
    parser.add_argument(
        "--noise",
        choices=("fresh", "reused"),
        default="fresh",
        help="re-injected noise drawn in every step, or once (default: %(default)s)",
    )
    parser.add_argument(
        "--noise_temperature",
        type=float,
        default=1.0,
        help="factor on a step's old noise; below 1 is colder (default: %(default)s)",
    )
    parser.add_argument(
        "--initial_temperature",
        type=float,
        default=1.0,
        help="factor on the noise that sampling starts from (default: %(default)s)",
    )
    parser.add_argument(
        "--solver", choices=("euler", "heun"), default="euler", help="how a step is made (default: %(default)s)"
    )
    parser.add_argument(
        "--snap",
        metavar="RULE",
        help="replace estimates on the way by those of their likeliest tokens: every, all steps; last:N, at the last "
        "N; confidence:P, where the probability exceeds P",
    )


def main(argv: list[str]) -> int:
    """Sample as ``argv`` says and return the exit code. Raises ``UserError`` for whatever a user can mend.

    Texts are written as they come, batch by batch, so that memory does not grow with their number.
    """
    args = parser().parse_args(argv)
    spent = Spent()
    with new_text_file(args.output, overwrite=args.overwrite) if args.output else nullcontext() as write:
        if write is None:
            for first, generated in batches(args, spent):
                for index, text in enumerate(generated.texts, first + 1):
                    print(f"[{index}] {text}\n", flush=index == first + len(generated))
        else:
            made_with = provenance("sample", argv)
            made = batches(args, spent)
            write(line for first, generated in made for line in json_lines(generated, args, first, made_with))
    print(
        f"{args.num_samples} texts, {args.steps} steps ({spent.nfe} network evaluations each), "
        f"{spent.seconds:.2f} s" + (f", written to {args.output}" if args.output else ""),
        file=sys.stderr,
    )
    return 0


@dataclass
class Spent:
    """What the texts so far took: network evaluations of each, and seconds for all."""

    nfe: int = 0
    seconds: float = 0.0


def batches(args: argparse.Namespace, spent: Spent) -> "Iterator[tuple[int, GeneratedText]]":
    """Load the model and sample; gives the index of a batch's first text and the batch, and counts into ``spent``.

    A progress bar goes to stderr.
    """
    from tqdm import tqdm  # these take seconds to import, which --help and a mistyped option should not

    from fewstep.pipeline import TextGenerator
    from fewstep.samplers import parse_rule, parse_snap

    try:  # before the model is loaded
        reinjection = parse_rule(args.reinjection)
        snap = None if args.snap is None else parse_snap(args.snap)
    except ValueError as error:
        raise UserError(str(error)) from None
    generator = TextGenerator.from_pretrained(args.path, device=pick_device(args.device))
    with tqdm(total=args.num_samples, desc="sampling", unit="text", file=sys.stderr, disable=None) as bar:
        for first in range(0, args.num_samples, args.batch_size):
            generated = generator.generate(
                min(args.batch_size, args.num_samples - first),
                args.steps,
                args.seed,
                readout=args.readout,
                reinjection=reinjection,
                solver=args.solver,
                reuse_noise=args.noise == "reused",
                noise_temperature=args.noise_temperature,
                initial_temperature=args.initial_temperature,
                snap=snap,
                head_context=args.head_context == "on",
                temperature=args.temperature,
                top_p=args.top_p,
                top_k=args.top_k,
                stop=args.stop,
                batch_size=args.batch_size,
                first_sample=first,
                progress=bar.update,
            )
            spent.nfe, spent.seconds = generated.nfe, spent.seconds + generated.seconds
            yield first, generated


def json_lines(
    generated: "GeneratedText", args: argparse.Namespace, first: int, made_with: Mapping[str, Any]
) -> Iterator[str]:
    """One JSON object a text, from index ``first`` on, each with all that is needed to make it again."""
    shared = {
        "steps": generated.num_steps,
        "seed": generated.seed,
        "readout": generated.readout,
        "reinjection": number_or_name(args.reinjection),
        "solver": args.solver,
        "noise": args.noise,
        "noise_temperature": args.noise_temperature,
        "initial_temperature": args.initial_temperature,
        "snap": args.snap,
        "head_context": args.head_context,
        "temperature": args.temperature,
        "top_p": args.top_p,
        "top_k": args.top_k,
        "stop": args.stop,
        "provenance": made_with,
    }
    for index, (text, ids) in enumerate(zip(generated.texts, generated.ids.tolist(), strict=True), first):
        yield json.dumps({"index": index, "text": text, "ids": ids, **shared}, ensure_ascii=False) + "\n"


def number_or_name(reinjection: str) -> float | str:
    """What a row says of the re-injection: a strength as a number, a rule as it was written."""
    try:
        return float(reinjection)
    except ValueError:
        return reinjection
