"""Several checkpoints, each of one training stage, to one model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fewstep.bundle import ModelBundle, check_agreement
from fewstep.errors import UserError

_IDENTITY_OF_PART = {
    "denoiser": ("path", "prediction", "objective", "trained_nfe", "estimate", "grid_mean", "grid_std"),
    "head": ("trust_level",),
}
"""What an identity says of one part, and which therefore goes where that part goes."""


def merge_bundles(bundles: Sequence[ModelBundle], sources: Sequence[str]) -> ModelBundle:
    """One model of the parts of several; of a part that comes twice the later one is taken.

    The identity is the last one's, but what it says of the denoiser and of the commitment head is taken from where
    these come from. ``sources`` name the bundles in messages. Raises ``UserError`` where tokenizer, block size or
    the autoencoder's weights differ: latents of two autoencoders do not mean the same.
    """
    parts: dict[str, Any] = {}
    origin: dict[str, int] = {}
    for index, bundle in enumerate(bundles):
        for what in ("tokenizer_fingerprint", "block_size"):
            ours, first = getattr(bundle.identity, what), getattr(bundles[0].identity, what)
            if ours != first:
                raise UserError(f"{sources[index]} and {sources[0]} differ in {what} ({ours}, {first}): cannot merge")
        if "autoencoder" in parts and bundle.autoencoder is not None:
            check_same_autoencoder(
                parts["autoencoder"], bundle.autoencoder, sources[origin["autoencoder"]], sources[index]
            )
        parts |= bundle.parts()
        origin |= dict.fromkeys(bundle.parts(), index)
    identity = bundles[-1].identity
    for part, names in _IDENTITY_OF_PART.items():
        if part in origin:
            theirs = bundles[origin[part]].identity
            identity = replace(identity, **{name: getattr(theirs, name) for name in names})
    merged = ModelBundle(bundles[-1].tokenizer, identity, **parts)
    check_agreement(merged, " + ".join(sources))
    return merged


def check_same_autoencoder(first: nn.Module, second: nn.Module, first_source: str, second_source: str) -> None:
    """Raise ``UserError`` unless both autoencoders have the same weights; the sources name them in the message."""
    ours, theirs = first.state_dict(), second.state_dict()
    if ours.keys() != theirs.keys() or not all(torch.equal(ours[key], theirs[key]) for key in ours):
        raise UserError(
            f"{first_source} and {second_source} hold different autoencoders: their latents do not mean the same; "
            "use together only what was trained on one autoencoder"
        )
