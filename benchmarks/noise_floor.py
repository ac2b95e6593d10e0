"""What the parallel readout makes of pure noise: the floor below which a sampler has done nothing for the text.

    python benchmarks/noise_floor.py --model runs/quickstart/model --samples 64 --seeds 3

Latents are standard normal, which is what an untrained flow of velocity leaves them; they are read and scored like
samples of the sweep, under the run's own language model. Prints perplexity and entropy with
their 95 % bootstrap intervals, and two texts.
"""

import argparse

import torch

from fewstep import TextGenerator
from fewstep.evaluation import RunScorer
from fewstep.evaluation.sweep_measures import Measures, TrainText
from fewstep.shapes import example_generators, randn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/quickstart/model", help="a text model with its language model")
    parser.add_argument("--samples", type=int, default=64, help="texts a seed")
    parser.add_argument("--seeds", type=int, default=3, help="seeds, from 0 on")
    args = parser.parse_args()
    bundle = TextGenerator.from_pretrained(args.model).bundle
    reader, scorer = bundle.reader(), RunScorer(bundle.scorer(), bundle.tokenizer)
    scores, texts = [], []
    for seed in range(args.seeds):
        noise = example_generators(seed, 0, args.samples)
        z = randn((args.samples, *bundle.latent_shape()), next(reader.parameters()), noise)
        with torch.no_grad():
            ids = reader(z, torch.ones(z.shape[:2], dtype=torch.bool)).argmax(-1)
        read = bundle.tokenizer.batch_decode(ids)
        scores.append(scorer.score(read, ids, torch.ones_like(ids, dtype=torch.bool)))
        texts += read
    empty = TrainText(torch.zeros(1, dtype=torch.long), ids.shape[1])  # no copies are looked for
    found = Measures(empty).of_scores(scores, range(args.seeds))
    for name in ("perplexity", "entropy_nats"):
        interval = found["perplexity_interval" if name == "perplexity" else "entropy_interval"]
        print(f"{name} {found[name]:,.2f} ({interval.low:,.2f} - {interval.high:,.2f})")
    print(*texts[:2], sep="\n")


if __name__ == "__main__":
    main()
