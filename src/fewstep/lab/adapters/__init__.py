"""Decoders that are not ours, made fit for the same diagnosis: a model's folder in, a decoder with its latents out."""

from fewstep.evaluation.pretrained import Loading
from fewstep.lab.adapters.autoencoder_kl import load_autoencoder_kl
from fewstep.lab.adapters.callables import load_callable
from fewstep.lab.adapters.causal_lm import load_causal_lm
from fewstep.lab.adapters.decoders import ImageDecoder, TextDecoder
from fewstep.lab.adapters.encoder_linear import load_encoder_linear
from fewstep.lab.adapters.linear import ReadoutChoice
from fewstep.lab.adapters.masked_lm import load_masked_lm
from fewstep.lab.adapters.seq2seq import load_seq2seq
from fewstep.lab.adapters.text import TextSource

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
