"""``fewstep sample``: text from a saved model."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse.typing import PositiveFloat, PositiveInt

from fewstep.cli.animation import Animation
from fewstep.cli.common import DeviceOptions
from fewstep.cli.main import check_stdout
from fewstep.cli.output import new_text_file, write_text
from fewstep.cli.parser import parse_options
from fewstep.cli.prompts import Given, PromptOptions, given_texts, parse_gap_tokens
from fewstep.errors import UserError
from fewstep.provenance import provenance

if TYPE_CHECKING:
    from fewstep.pipeline import GeneratedText


@dataclass(kw_only=True)
class SamplerOptions:
    """From noise to latents.

    Args:
        steps: number of steps.
        reinjection: fresh noise after each step, from 0 (none) to 1, or a rule such as cosine:1,0; left out, 1 for an
            endpoint model, where that is exact, and 0 for others, where a constant strength makes samples colder than
            the data (docs/findings/consistency.md).
        noise: draw re-injected noise in every step, or once.
        noise_scale: factor on all noise that is drawn, the temperature of sampling; below 1 gives likelier and less
            varied texts.
        noise_temperature: factor on a step's old noise, a control for re-injection; below 1 is colder.
        solver: how a step is taken.
        snap: replace estimates by those of their likeliest tokens: every, last:N (in the last N steps), confidence:P
            (where the probability exceeds P).
    """

    steps: PositiveInt = 4
    reinjection: float | list[float] | str | None = None
    noise: Literal["fresh", "reused"] = "fresh"
    noise_scale: PositiveFloat = 1.0
    noise_temperature: float = 1.0
    solver: Literal["euler", "heun"] = "euler"
    snap: str | None = None


@dataclass(kw_only=True)
class ReadoutOptions:
    """From latents to tokens.

    Args:
        readout: parallel, all tokens at once, or head, one after the other by the autoregressive head.
        head_context: off hides the earlier tokens from the head, for comparison.
        temperature: of the draw, 0 takes the likeliest token; left out, 0 for parallel and 1 for head.
        top_p: draw from the likeliest tokens of this total mass.
        top_k: draw from this many likeliest tokens; left out, from all.
        stop: end a text at its first end-of-text token, as a model of blocks of one document always does.
    """

    readout: str = "parallel"
    head_context: Literal["on", "off"] = "on"
    temperature: float | None = None
    top_p: float = 1.0
    top_k: PositiveInt | None = None
    stop: bool = False


@dataclass(kw_only=True)
class SampleOptions(PromptOptions, SamplerOptions, ReadoutOptions, DeviceOptions):
    """Write text with a saved model.

    Args:
        model: a model folder, a .ckpt file of the flow or a later stage, or owner/name on the hub.
        num_samples: how many texts, of each prompt.
        seed: the same seed gives the same texts.
        batch_size: texts generated at a time; changes speed only.
        output: a .jsonl file to write, or - for JSON lines on standard output; left out, the texts are printed.
        overwrite: replace the output file.
        stream: print each text as its blocks are finished, one text at a time.
        animate: an .html file to write, which shows the texts settle step by step.
    """

    model: str
    num_samples: PositiveInt = 8
    seed: int = 0
    batch_size: PositiveInt = 64
    output: str | None = None
    overwrite: bool = False
    stream: bool = False
    animate: Path | None = None


def main(argv: list[str]) -> int:
    """Sample as ``argv`` says and return the exit code. Texts are written batch by batch, in constant memory."""
    options = parse_options("sample", SampleOptions, argv)
    given = [text for text in given_texts(options) for _ in range(options.num_samples)]
    to_file = options.output not in (None, "-")
    if options.stream and options.output is not None:
        raise UserError(f"--stream prints texts, and --output is {options.output}: leave one of them out")
    if options.animate is not None and options.animate.exists() and not options.overwrite:
        raise UserError(f"--animate {options.animate} exists already: choose another file, or add --overwrite")
    cost = {"nfe": 0, "seconds": 0.0}
    with new_text_file(options.output, overwrite=options.overwrite) if to_file else nullcontext(print_now) as write:  # type: ignore[arg-type]
        write(written_batches(options, given, provenance("sample", argv), cost))
    print(
        f"{len(given)} texts, {options.steps} steps ({cost['nfe']} network evaluations each), "
        f"{cost['seconds']:.2f} s" + (f", written to {options.output}" if to_file else ""),
        file=sys.stderr,
    )
    return 0


def print_now(batches: Iterable[str]) -> None:
    """Write to standard output; raises ``OSError`` if that is closed."""
    for batch in batches:
        print(batch, end="", flush=True)
        check_stdout()


def written_batches(
    options: SampleOptions, given: Sequence[Given], recipe: dict[str, Any], cost: dict[str, float]
) -> Iterator[str]:
    """Load the model and sample a text for each of ``given``; gives the lines of each batch.

    ``cost``: network evaluations of each text, and seconds for all texts so far.
    """
    from tqdm import tqdm  # takes seconds to import with the others, which --help should not

    from fewstep.pipeline import TextGenerator
    from fewstep.samplers import default_sampling, parse_rule, parse_snap

    try:  # before the model is loaded
        parse_rule(0.0 if options.reinjection is None else options.reinjection)
        snap = None if options.snap is None else parse_snap(options.snap)
    except ValueError as error:
        raise UserError(str(error)) from None
    gap_tokens = parse_gap_tokens(options.gap_tokens)
    generator = TextGenerator.from_pretrained(options.model, options.pick_device(), allow=options.allowed)
    if options.reinjection is None:
        own = default_sampling(generator.model.identity, options.steps)
        options = replace(options, reinjection=own.reinjection)
    animation = None if options.animate is None else Animation(generator.model)
    batches = alike_batches(given, 1 if options.stream or animation is not None else options.batch_size)
    with tqdm(total=len(given), desc="sampling", unit="text", file=sys.stderr, disable=None) as bar:
        for first, batch in batches:
            if animation is not None:
                animation.next_text()
            generated = generator.generate(
                len(batch),
                options.steps,
                options.seed,
                readout=options.readout,
                reinjection=options.reinjection,
                solver=options.solver,
                reuse_noise=options.noise == "reused",
                noise_scale=options.noise_scale,
                noise_temperature=options.noise_temperature,
                snap=snap,
                head_context=options.head_context == "on",
                temperature=options.temperature,
                top_p=options.top_p,
                top_k=options.top_k,
                stop=options.stop,
                batch_size=len(batch),
                first_sample=first,
                prompt=None if batch[0].prompt is None else [str(text.prompt) for text in batch],
                infill=None if batch[0].infill is None else [str(text.infill) for text in batch],
                gap_tokens=gap_tokens,
                max_new_tokens=options.max_new_tokens,
                commit_tokens=options.commit_tokens,
                guidance=options.guidance,
                on_state=None if animation is None else animation.on_state,
                on_block=Stream(first) if options.stream else None,
                progress=bar.update,
            )
            cost |= {"nfe": generated.nfe, "seconds": cost["seconds"] + generated.seconds}
            if options.stream:
                yield "\n\n"
            elif options.output is None:
                yield "".join(f"[{index}] {text}\n\n" for index, text in enumerate(generated.texts, first + 1))
            else:
                yield "".join(json_lines(generated, batch, generator.model.tokenizer, options, first, recipe))
    if any(text != Given() for text in given) and not generator.model.flow().reads_known:
        print("trained without known positions, this flow was given them by replacement", file=sys.stderr)
    if animation is not None and options.animate is not None:
        write_text(options.animate, animation.page(f"{options.model}, {options.steps} steps"))


def alike_batches(given: Sequence[Given], batch_size: int) -> Iterator[tuple[int, Sequence[Given]]]:
    """The texts in batches of prompts alone, of infills alone or of neither, each with the number of its first."""
    first = 0
    while first < len(given):
        is_infill = given[first].infill is not None
        end = first
        while end < min(len(given), first + batch_size) and (given[end].infill is not None) == is_infill:
            end += 1
        yield first, given[first:end]
        first = end


class Stream:
    """Prints what is new of a text whenever a block of it is finished."""

    def __init__(self, number: int) -> None:
        self.shown = ""
        print(f"[{number + 1}] ", end="", flush=True)

    def __call__(self, number: int, text: str) -> None:
        whole = text.rstrip("\ufffd")  # the next block may complete a character
        print(whole[len(self.shown) :], end="", flush=True)
        check_stdout()
        self.shown = whole


def json_lines(
    generated: "GeneratedText",
    given: Sequence[Given],
    tokenizer: Any,
    options: SampleOptions,
    first: int,
    recipe: dict[str, Any],
) -> Iterator[str]:
    """One JSON object per text, from index ``first`` on, each with all that reproduces it.

    A text with a prompt has it, and its ``continuation``; one with gaps has its ``infill``, and what is in the
    ``gaps``.
    """
    from fewstep.pipeline import decode_documents

    settings = asdict(options)
    unwanted = ("model", "num_samples", "batch_size", "output", "overwrite", "device", "allow", "stream", "animate")
    for name in (*unwanted, "prompt", "infill", "prompts"):
        del settings[name]
    settings["provenance"] = recipe
    rows = zip(generated.texts, generated.ids.tolist(), generated.new_parts(), given, strict=True)
    for index, (text, ids, new, known) in enumerate(rows, first):
        row = {"index": index, "text": text, "ids": ids}
        parts = ["".join(decode_documents(tokenizer, part)) for part in new]
        if known.prompt is not None:
            row |= {"prompt": known.prompt, "continuation": "".join(parts)}
        if known.infill is not None:
            row |= {"infill": known.infill, "gaps": parts}
        yield json.dumps({**row, **settings}, ensure_ascii=False) + "\n"
