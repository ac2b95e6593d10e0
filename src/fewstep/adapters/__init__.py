"""Decoders that are not ours, made fit for the same diagnosis: a model's folder in, a decoder with its latents out."""

from fewstep.adapters.autoencoder_kl import load_autoencoder_kl
from fewstep.adapters.callables import load_callable
from fewstep.adapters.causal_lm import load_causal_lm
from fewstep.adapters.decoders import ImageDecoder, TextDecoder
from fewstep.adapters.encoder_linear import load_encoder_linear
from fewstep.adapters.linear import ReadoutChoice
from fewstep.adapters.loading import Loading
from fewstep.adapters.masked_lm import load_masked_lm
from fewstep.adapters.seq2seq import load_seq2seq
from fewstep.adapters.text import TextSource

__all__ = [
    "ImageDecoder",
    "Loading",
    "ReadoutChoice",
    "TextDecoder",
    "TextSource",
    "load_autoencoder_kl",
    "load_callable",
    "load_causal_lm",
    "load_encoder_linear",
    "load_masked_lm",
    "load_seq2seq",
]
