"""What the latents of known tokens lose by not seeing the rest of their text.

python studies/leak.py MODEL                        # a minute on one core
python studies/leak.py MODEL --known 4,8,16 --samples 64
"""

import argparse

import torch
from torch import Tensor

from fewstep.autoencoders import TransformerAutoencoder
from fewstep.cli.common import TextOptions, corpus_of
from fewstep.model import SavedModel


def leak(model: SavedModel, ids: Tensor, known_tokens: int) -> str:
    """How far the latents of the first ``known_tokens`` of ``ids`` (B, L) are from those in the whole text.

    Known alone by padding behind them, and by the encoder's mask embeddings where it has them.
    """
    encoder, seen = model.encoder(), torch.zeros_like(ids, dtype=torch.bool)
    seen[:, :known_tokens] = True
    latents = seen.unflatten(1, (model.latent_shape()[0], -1)).all(-1)
    whole = encoder.encode(ids, torch.ones_like(seen)).z
    variants = {"padding": encoder.encode(ids, seen).z}
    if isinstance(encoder, TransformerAutoencoder):
        variants["mask embeddings"] = encoder.encode(ids, torch.ones_like(seen), ~seen).z
    parts = []
    for name, z in variants.items():
        rms = (z - whole)[latents].square().mean().sqrt()
        mixed = torch.where(latents[..., None], z, whole)
        right = model.reader().logits(mixed, torch.ones_like(latents)).argmax(-1) == ids
        parts.append(f"{name} {rms:.2f} rms, {right[seen].float().mean():.1%} read right")
    return f"first {known_tokens} tokens known: " + "; ".join(parts)


def main() -> None:
    """Print a line for each number of known tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--source", default="everyday")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--known", default="4,8,16", help="first tokens that are known, with commas between")
    given = parser.parse_args()
    model = SavedModel.from_pretrained(given.model)
    corpus = corpus_of(model, TextOptions(source=given.source)).validation
    ids = torch.tensor(corpus[: given.samples]["input_ids"]).long()
    with torch.no_grad():
        for size in map(int, given.known.split(",")):
            print(leak(model, ids, size))


if __name__ == "__main__":
    main()
