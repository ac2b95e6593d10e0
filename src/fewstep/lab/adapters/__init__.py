"""Decoders of other packages, made fit for ``fewstep diagnose``.

A loader takes the command's options and gives a Decoder; it raises ``UserError`` for whatever is wrong with the model,
its tokenizer or the data that they name.
"""

from fewstep.lab.adapters.decoder import Decoder

__all__ = ["Decoder"]
