"""Continuations of held-out texts, and the commitment dial: tokens committed at a time against quality and passes.

    python studies/prompts.py MODEL --language_model MODEL         # some minutes on one core
    python studies/prompts.py MODEL --language_model MODEL --samples 16 --steps 2

Texts of at least twice ``--prompt_tokens`` are cut there and written on, up to their end. Perplexity is that of the new
tokens given the prompt, under the language model, with a bootstrap interval over texts. ``passes`` counts forward
passes that come one after the other: denoiser, readout, and the encoder at every block. Before the table: what the
latents of known tokens lose by not seeing the rest.
"""

import argparse
import time

import torch
from torch import Tensor

from fewstep.autoencoders import TransformerAutoencoder
from fewstep.cli.common import TextOptions, corpus_of
from fewstep.evaluation.scorers import corpus_perplexity
from fewstep.metrics.intervals import bootstrap_interval
from fewstep.metrics.text import sample_entropies_nats
from fewstep.model import SavedModel
from fewstep.pipeline import TextGenerator, write_all
from fewstep.prompts import Draft
from fewstep.readouts import LanguageModel, decode_cached, tokens_to_first_end
from fewstep.shapes import example_generators, rand
from fewstep.types import Ending, KnownTokens
from fewstep.writing import Writer


def row(
    name: str, scorer: LanguageModel, ids: Tensor, prompt_tokens: int, end: int, passes: str, seconds: float
) -> str:
    """A line of the table for texts (B, L) whose first ``prompt_tokens`` were given."""
    new = tokens_to_first_end(ids, end)
    new[:, :prompt_tokens] = False
    with torch.no_grad():
        nats = scorer.token_nats(ids)
    sums = torch.stack([(nats * new).sum(1).double(), new.sum(1).double()], dim=1)
    low_high = bootstrap_interval(sums, corpus_perplexity, 1000, torch.Generator().manual_seed(0), batched=True)
    entropy = sample_entropies_nats(ids[:, prompt_tokens:], new[:, prompt_tokens:]).mean()
    return (
        f"| {name} | {float(corpus_perplexity(sums)):.1f} ({low_high.low:.1f} - {low_high.high:.1f}) | {entropy:.2f} | "
        f"{sums[:, 1].mean():.1f} | {passes} | {seconds / len(ids):.3f} |"
    )


def leak(model: SavedModel, ids: Tensor, known_tokens: int) -> str:
    """How far the latents of the first ``known_tokens`` of ``ids`` (B, L) are from those in the whole text.

    Known alone by padding behind them, and by the encoder's mask embeddings where it has them.
    """
    encoder, seen = model.encoder(), torch.zeros_like(ids, dtype=torch.bool)
    seen[:, :known_tokens] = True
    latents = seen.unflatten(1, (model.latent_shape()[0], -1)).all(-1)
    whole = encoder.encode(ids, torch.ones_like(seen)).z
    ways = {"padding": encoder.encode(ids, seen).z}
    if isinstance(encoder, TransformerAutoencoder):
        ways["mask embeddings"] = encoder.encode(ids, torch.ones_like(seen), ~seen).z
    found = []
    for name, z in ways.items():
        rms = (z - whole)[latents].square().mean().sqrt()
        mixed = torch.where(latents[..., None], z, whole)
        right = model.reader().logits(mixed, torch.ones_like(latents)).argmax(-1) == ids
        found.append(f"{name} {rms:.2f} rms, {right[seen].float().mean():.1%} read right")
    return f"first {known_tokens} tokens known: " + "; ".join(found)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--language_model", required=True)
    parser.add_argument("--source", default="everyday")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--prompt_tokens", type=int, default=12)
    parser.add_argument("--steps", default="2,4,8")
    parser.add_argument("--commit", default="1,2,4,8,32")
    parser.add_argument("--reinjection", type=float, default=1.0)
    given = parser.parse_args()
    generator = TextGenerator.from_pretrained(given.model)
    model, scorer = generator.model, SavedModel.from_pretrained(given.language_model).scorer()
    identity, tokenizer = model.identity, model.tokenizer
    corpus = corpus_of(model, TextOptions(source=given.source)).validation
    blocks = torch.tensor(corpus[:512]["input_ids"]).long()
    with torch.no_grad():
        print("\n".join(leak(model, blocks, size) for size in (4, 8, 16) if size < identity.block_size), "\n")
    long = [place for place, length in enumerate(corpus["length"][:]) if length >= 2 * given.prompt_tokens]
    real = torch.tensor(corpus.select(long[: given.samples])["input_ids"][:]).long()
    count, size, cut, end = len(real), identity.block_size, given.prompt_tokens, int(tokenizer.eos_token_id)
    print("| text | perplexity given the prompt | entropy (nats) | new tokens | passes | seconds a text |")
    print("|---|---|---|---|---|---|")
    print(row("held-out text", scorer, real, cut, end, "", 0.0))
    order = torch.rand(count, size - cut, generator=torch.Generator().manual_seed(0)).masked_fill(
        ~tokens_to_first_end(real, end)[:, cut:] | (real[:, cut:] == end), 2.0
    )
    shuffled = torch.cat([real[:, :cut], real[:, cut:].gather(1, order.argsort(dim=1, stable=True))], dim=1)
    print(row("its new tokens shuffled", scorer, shuffled, cut, end, "", 0.0))
    ending, known = Ending(end, int(tokenizer.pad_token_id)), torch.zeros_like(real, dtype=torch.bool)
    known[:, :cut] = True
    began = time.perf_counter()
    u = rand((count, size), torch.zeros(()), example_generators(0, 0, count))
    lm = decode_cached(
        scorer.network, u, None, temperature=1.0, top_p=1.0, ending=ending, known=KnownTokens(real, known)
    )
    texts = lm.ids.masked_fill(~lm.written, end)
    print(row("language model", scorer, texts, cut, end, f"{size - cut}", time.perf_counter() - began))
    drafts = [Draft(ids=tuple(ids[:cut].tolist()), length=size) for ids in real]
    for steps in map(int, given.steps.split(",")):
        for commit in map(int, given.commit.split(",")):
            draw, ending_of = generator.draw("parallel", stop=True)
            sampler = generator.sampler(steps, given.reinjection if steps > 1 else 0.0)
            writer = Writer(model, sampler, steps, draw, ending_of, commit)
            began = time.perf_counter()
            written = write_all(writer, drafts, example_generators(0, 0, count), 64, None, 0, None)
            seconds = time.perf_counter() - began
            ids = torch.tensor([text.ids + [end] * (size - len(text.ids)) for text in written.texts])
            passes = written.nfe // steps * (steps + 2)
            name = f"K = {steps}, {'all' if commit >= size - cut else commit} at a time"
            print(row(name, scorer, ids, cut, end, f"{passes}", seconds), flush=True)


if __name__ == "__main__":
    main()
