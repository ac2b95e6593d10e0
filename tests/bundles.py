"""Tiny models with random weights, on a tokenizer trained on a few lines."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from fewstep import storage
from fewstep.autoencoders import TransformerAutoencoder
from fewstep.data.tokenizer import tokenizer_fingerprint, train_tokenizer
from fewstep.denoisers import RegressionDenoiser
from fewstep.model import Identity, SavedModel
from fewstep.readouts import CausalTransformer, TransformerReadout

BLOCK_SIZE, STRIDE, LATENT_DIM = 8, 2, 6
LINES = ["the old ship sailed past the old lights", "nobody knew how far the lights would be from here", "café Straße"]


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 290 tokens."""
    return train_tokenizer(LINES * 5, 290)


def tiny_bundle(seed: int = 0, *, self_conditioning: bool = False, width: int = 16) -> SavedModel:
    """All five parts, in evaluation mode. Weights are random but not those of initialisation, which zero outputs."""
    with torch.random.fork_rng():  # constructors draw from the global generator
        torch.manual_seed(seed)
        bundle = _fresh_bundle(self_conditioning, width)
    generator = torch.Generator().manual_seed(seed)
    for part in bundle.parts().values():
        randomise(part, generator)
    return bundle.to("cpu")


def _fresh_bundle(self_conditioning: bool, width: int) -> SavedModel:
    vocab_size = len(tokenizer())
    sizes = {"width": width, "depth": 1, "num_heads": 2}
    return SavedModel(
        tokenizer(),
        Identity(BLOCK_SIZE, tokenizer_fingerprint(tokenizer()), grid_mean=-0.2, grid_std=1.1, source="tests"),
        autoencoder=TransformerAutoencoder(vocab_size, LATENT_DIM, stride=STRIDE, **sizes),
        readout=TransformerReadout(vocab_size, LATENT_DIM, stride=STRIDE, **sizes),
        denoiser=RegressionDenoiser(LATENT_DIM, BLOCK_SIZE // STRIDE, self_conditioning=self_conditioning, **sizes),
        head=CausalTransformer(vocab_size, latent_dim=LATENT_DIM, stride=STRIDE, **sizes),
        language_model=CausalTransformer(vocab_size, **sizes),
    )


@torch.no_grad()
def randomise(part: nn.Module, generator: torch.Generator) -> None:
    """Matrices of a size that makes outputs differ clearly between inputs; vectors (biases, norms) stay."""
    for parameter in filter(lambda parameter: parameter.ndim > 1, part.parameters()):
        parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))


def only(bundle: SavedModel, *names: str) -> SavedModel:
    """The same model with no other parts than ``names``."""
    kept = {name: part for name, part in bundle.parts().items() if name in names}
    return SavedModel(bundle.tokenizer, bundle.identity, **kept)


def with_identity(bundle: SavedModel, **changes: object) -> SavedModel:
    """The same parts under another identity."""
    return SavedModel(bundle.tokenizer, replace(bundle.identity, **changes), **bundle.parts())


def write_checkpoint(bundle: SavedModel, file: Path, trained: str) -> Path:
    """A checkpoint as training writes it: ``trained`` in ``state_dict``, the other parts frozen beside it."""
    weights = {name: part.state_dict() for name, part in bundle.parts().items()}
    state = {f"{trained}.{key}": value for key, value in weights.pop(trained).items()}
    entry = storage.checkpoint_entry(bundle.manifest(), weights, bundle.tokenizer)
    torch.save({"state_dict": state, storage.CHECKPOINT_KEY: entry, "epoch": 3}, file)
    return file


def flip_a_bit(file: Path) -> None:
    """Change one bit in the middle of the numbers of a safetensors file, behind its header."""
    content = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[(start + len(content)) // 2] ^= 1
    file.write_bytes(content)
