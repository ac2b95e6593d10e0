"""Decoders of other packages, made fit for ``fewstep diagnose``: a loader takes its options and gives a Decoder."""

from fewstep.lab.adapters.decoder import Decoder

__all__ = ["Decoder"]
