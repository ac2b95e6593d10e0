"""Manifests of format 1 (fewstep 0.1), kept apart so that support for them can be deleted in one piece."""

from typing import Any

STORED_NAME = {"head": "commitment"}
"""Parts whose weights format 1 stores under another name."""
CLASS_PATHS = {
    "TransformerAutoencoder": "fewstep.autoencoders.TransformerAutoencoder",
    "ImageAutoencoder": "fewstep.autoencoders.ImageAutoencoder",
    "LinearReadout": "fewstep.readouts.LinearReadout",
    "TransformerReadout": "fewstep.readouts.TransformerReadout",
    "CausalTransformer": "fewstep.readouts.CausalTransformer",
    "RegressionDenoiser": "fewstep.denoisers.RegressionDenoiser",
    "CategoricalDenoiser": "fewstep.denoisers.CategoricalDenoiser",
}


def from_format_1(manifest: dict[str, Any]) -> dict[str, Any]:
    """The same manifest as of format 2, but for its number: it tells where weights are stored under old names.

    Raises ``KeyError``, ``TypeError`` or ``AttributeError`` for what never was a manifest of format 1.
    """
    new_name = {old: new for new, old in STORED_NAME.items()}
    identity = dict(manifest["identity"])
    parts = {}
    for name, part in manifest["parts"].items():
        class_path = CLASS_PATHS.get(part["class"], part["class"])
        parts[new_name.get(name, name)] = {"class_path": class_path, "init_args": dict(part["config"])}
        if part["class"] == "CategoricalDenoiser":
            parts[name]["init_args"]["path"] = identity["path"]
    if manifest.get("kind", "text") == "images":
        identity = _image_identity(identity)
    else:
        identity = {"estimate": "posterior_mean", "source_config": {}, **identity}
    identity["kind"] = manifest.get("kind", "text")
    return {"format": 1, "identity": identity, "parts": parts, "sha256": manifest.get("sha256", {})}


def _image_identity(old: dict[str, Any]) -> dict[str, Any]:
    """Format 1 kept an image model's flow apart, and shapes that its autoencoder has anyway."""
    new = {"source": old["data"], "source_config": old["data_config"], "versions": old["versions"]}
    flow = old.get("flow") or {
        "time_convention": "t=0 noise, t=1 data",
        "path": "linear",
        "prediction": "x1",
        "objective": old["objective"],
        "trained_nfe": None,
        "estimate": "posterior_mean",
        "grid_mean": None,
        "grid_std": None,
    }
    return {**new, **flow, "block_size": 0, "tokenizer_fingerprint": "", "trust_level": 0.5}
