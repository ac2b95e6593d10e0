"""``fewstep sample``: text from a saved model."""

import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from jsonargparse.typing import PositiveFloat, PositiveInt

from fewstep.cli.common import DeviceOptions
from fewstep.cli.main import check_stdout
from fewstep.cli.output import check_free, new_text_file, write_text
from fewstep.cli.parser import parse_options
from fewstep.errors import UserError
from fewstep.provenance import provenance

if TYPE_CHECKING:
    from fewstep.model import SavedModel
    from fewstep.pipeline import GeneratedText
    from fewstep.types import KnownTokens, SamplerState
    from fewstep.writing import OnState

PASSED_ON = (
    *("readout", "reinjection", "solver", "noise_scale", "noise_temperature", "snap", "temperature", "top_p", "top_k"),
    *("stop", "max_new_tokens", "commit_tokens", "guidance"),
)
"""Options that are arguments of :meth:`fewstep.pipeline.TextGenerator.generate`."""
NOT_IN_ROWS = (
    *("model", "num_samples", "batch_size", "output", "overwrite", "device", "allow", "stream", "animate"),
    *("prompt", "infill", "prompts"),
)


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
        readout: parallel, all tokens at once; mask_predict, then the least certain once more from what the others say;
            head, one after the other by the autoregressive head; head_off, for comparison, hides the earlier tokens
            from the head.
        temperature: of the draw, 0 takes the likeliest token; left out, 1 for head and 0 for the others.
        top_p: draw from the likeliest tokens of this total mass.
        top_k: draw from this many likeliest tokens; left out, from all.
        stop: end a text at its first end-of-text token, as a model of blocks of one document always does.
    """

    readout: str = "parallel"
    temperature: float | None = None
    top_p: float = 1.0
    top_k: PositiveInt | None = None
    stop: bool = False


@dataclass(kw_only=True)
class PromptOptions:
    """What is known of a text.

    Args:
        prompt: the beginning of every text.
        infill: a text with gaps to fill in, each marked [..], as in "The [..] sat on [..].".
        prompts: a .jsonl file of objects with a text as "prompt" or as "infill", one a line; num_samples texts are
            written for each.
        gap_tokens: tokens of a gap, a number or the least and the most, as in 2-6.
        max_new_tokens: tokens to write after the prompt; left out, as many as the block has room for.
        commit_tokens: tokens written at a time, each time with those before them known; left out, a whole block.
        guidance: scale of classifier-free guidance on what is known; 1 for none.
    """

    prompt: str | None = None
    infill: str | None = None
    prompts: Path | None = None
    gap_tokens: str | int = "1-8"
    max_new_tokens: PositiveInt | None = None
    commit_tokens: PositiveInt | None = None
    guidance: PositiveFloat = 1.0


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


class Given(NamedTuple):
    """What is known of one text: a ``text`` that is a "prompt" or an "infill"; nothing, where ``kind`` is empty."""

    kind: str = ""
    text: str = ""


def main(argv: list[str]) -> int:
    """Sample as ``argv`` says and return the exit code. Texts are written batch by batch, in constant memory."""
    options = parse_options("sample", SampleOptions, argv)
    given = [text for text in given_texts(options) for _ in range(options.num_samples)]
    if options.stream and options.output is not None:
        raise UserError(f"--stream prints texts, and --output is {options.output}: leave one of them out")
    if options.animate is not None:
        check_free(options.animate, overwrite=options.overwrite)
    if options.output in (None, "-"):
        print_now(written_batches(options, given, provenance("sample", argv)))
    else:
        with new_text_file(options.output, overwrite=options.overwrite) as write:
            write(written_batches(options, given, provenance("sample", argv)))
    return 0


def print_now(batches: Iterable[str]) -> None:
    """Write to standard output; raises ``OSError`` if that is closed."""
    for batch in batches:
        print(batch, end="", flush=True)
        check_stdout()


def given_texts(options: PromptOptions) -> list[Given]:
    """What is known of each text that the options name. Raises ``UserError`` for options that do not fit each other."""
    chosen = [name for name in ("prompt", "infill", "prompts") if getattr(options, name) is not None]
    if len(chosen) > 1:
        raise UserError(f"--{' and --'.join(chosen)} are given: choose one")
    if options.guidance != 1 and not chosen:
        raise UserError(f"--guidance is {options.guidance}: it leans on what is known, so give a --prompt too")
    if not re.fullmatch(r"\d+(-\d+)?", str(options.gap_tokens)):
        raise UserError(f"--gap_tokens {options.gap_tokens!r}: expected a number, or the least and the most, as in 2-6")
    if options.prompts is not None:
        return list(read_prompts(options.prompts))
    return [Given(name, getattr(options, name)) for name in chosen] or [Given()]


def read_prompts(file: Path) -> Iterator[Given]:
    """The prompts of a file. Raises ``UserError``, with the line's number, for a line that is not one."""
    from fewstep.data.readers import READERS

    is_empty = True
    with file.open("rb") as stream:
        for place, row in READERS[".jsonl"](stream, f"{file},", "prompt"):
            is_empty = False
            fields = row if isinstance(row, dict) else {}
            texts = [Given(kind, fields[kind]) for kind in ("prompt", "infill") if kind in fields]
            if len(texts) != 1 or not isinstance(texts[0].text, str):
                raise UserError(f'{place}: expected an object with a text as "prompt" or as "infill"')
            yield texts[0]
    if is_empty:
        raise UserError(f'--prompts {file} has no line: give one object a line, such as {{"prompt": "The cat"}}')


def written_batches(options: SampleOptions, given: Sequence[Given], recipe: dict[str, Any]) -> Iterator[str]:
    """Load the model and sample a text for each of ``given``; gives the lines of each batch."""
    from tqdm import tqdm  # takes seconds to import with the others, which --help should not

    from fewstep.pipeline import TextGenerator
    from fewstep.samplers import default_sampling

    generator = TextGenerator.from_pretrained(options.model, options.pick_device(), allow=options.allowed)
    if options.reinjection is None:
        own = default_sampling(generator.model.identity, options.steps)
        options = replace(options, reinjection=own.reinjection)
    passed: dict[str, Any] = {name: getattr(options, name) for name in PASSED_ON}
    least, _, most = str(options.gap_tokens).partition("-")
    animation = Animation(generator.model) if options.animate else None
    seconds, stream = 0.0, Stream()
    with tqdm(total=len(given), desc="sampling", unit="text", file=sys.stderr, disable=None) as bar:
        for first, batch in alike_batches(given, 1 if options.stream or options.animate else options.batch_size):
            kind = batch[0].kind
            known: dict[str, Any] = {kind: [text for _, text in batch]} if kind else {}
            generated = generator.generate(
                len(batch),
                options.steps,
                options.seed,
                **passed,
                **known,
                reuse_noise=options.noise == "reused",
                gap_tokens=(int(least), int(most or least)),
                batch_size=len(batch),
                first_sample=first,
                on_state=animation.begin_text() if animation else None,
                on_block=stream if options.stream else None,
                progress=bar.update,
            )
            seconds += generated.seconds
            if options.stream:
                yield "\n\n"
            elif options.output is None:
                yield "".join(f"[{index}] {text}\n\n" for index, text in enumerate(generated.texts, first + 1))
            else:
                yield "".join(json_lines(generated, batch, generator.model.tokenizer, options, first, recipe))
    cost = f"{options.steps} steps ({generated.nfe} network evaluations each), {seconds:.2f} s"
    print(f"{len(given)} texts, {cost}", file=sys.stderr)
    if any(text.kind for text in given) and not generator.model.flow().reads_known:
        print("trained without known positions, this flow was given them by replacement", file=sys.stderr)
    if animation and options.animate:
        write_text(options.animate, animation.page(f"{options.model}, {options.steps} steps"))


def alike_batches(given: Sequence[Given], batch_size: int) -> Iterator[tuple[int, Sequence[Given]]]:
    """The texts in batches of prompts alone, of infills alone or of neither, each with the number of its first."""
    first = 0
    for _, group in groupby(given, key=lambda text: text.kind):
        alike = list(group)
        for start in range(0, len(alike), batch_size):
            yield first + start, alike[start : start + batch_size]
        first += len(alike)


class Stream:
    """Prints what is new of a text whenever a block of it is finished."""

    def __init__(self) -> None:
        self.number = -1
        self.shown = ""

    def __call__(self, number: int, text: str) -> None:
        if number != self.number:
            print(f"[{number + 1}] ", end="")
            self.number, self.shown = number, ""
        whole = text.rstrip("\ufffd")  # the next block may complete a character
        print(whole[len(self.shown) :], end="", flush=True)
        check_stdout()
        self.shown = whole


class Animation:
    """Collects what the parallel readout would write at every step, a list of frames for each text."""

    def __init__(self, model: "SavedModel") -> None:
        self.model = model
        self.reader = model.reader()
        self.texts: list[list[dict[str, Any]]] = []
        self._block = 0

    def begin_text(self) -> "OnState":
        """What is called with the states of the next text."""
        self.texts.append([])
        self._block = 0
        return self._on_state

    def _on_state(self, state: "SamplerState", known: "KnownTokens") -> None:
        """Keep the tokens of a step's estimate, and of x_1 after the last."""
        import torch

        from fewstep.data.tokenizer import decode_documents
        from fewstep.shapes import real_positions

        if state.x1_hat is None:
            self._block += 1
            return
        z = state.x_t if state.time == 1 else state.x1_hat
        mask = real_positions(z)
        sure, ids = self.reader.logits(z, mask).float().softmax(-1)[0].max(-1)
        ids = torch.where(known.mask[0], known.ids[0], ids)
        tokens = []
        for token, share, given in zip(ids.tolist(), sure.tolist(), known.mask[0].tolist(), strict=True):
            if token == self.model.tokenizer.eos_token_id:
                break
            tokens.append([decode_documents(self.model.tokenizer, [token])[0], round(share, 2), given])
        self.texts[-1].append({"block": self._block, "step": state.step, "tokens": tokens})

    def page(self, title: str) -> str:
        """The page as HTML, which needs no other file."""
        from importlib.resources import files

        from jinja2 import Template

        page = files("fewstep.cli").joinpath("animation.html").read_text("utf-8")
        return Template(page, autoescape=True).render(title=title, texts=self.texts)


def json_lines(
    generated: "GeneratedText",
    given: Sequence[Given],
    tokenizer: Any,
    options: SampleOptions,
    first: int,
    recipe: dict[str, Any],
) -> Iterator[str]:
    """One JSON object per text, from index ``first`` on, each with all that reproduces it."""
    from fewstep.data.tokenizer import decode_documents

    settings = {name: value for name, value in asdict(options).items() if name not in NOT_IN_ROWS}
    rows = zip(generated.texts, generated.ids.tolist(), generated.new_parts(), given, strict=True)
    for index, (text, ids, new, (kind, known)) in enumerate(rows, first):
        parts = ["".join(decode_documents(tokenizer, part)) for part in new]
        row: dict[str, Any] = {"index": index, "text": text, "ids": ids}
        if kind:
            row |= {kind: known, **({"continuation": "".join(parts)} if kind == "prompt" else {"gaps": parts})}
        yield json.dumps({**row, **settings, "provenance": recipe}, ensure_ascii=False) + "\n"
