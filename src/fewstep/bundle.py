"""A saved model: one folder, or a training checkpoint, that holds everything which generation needs."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from fewstep import storage
from fewstep.autoencoders import TransformerAutoencoder
from fewstep.data import tokenizer_fingerprint
from fewstep.denoisers import (
    ESTIMATES,
    POSTERIOR_MEAN,
    CategoricalDenoiser,
    FlowModel,
    PredictionType,
    RegressionDenoiser,
)
from fewstep.errors import UserError
from fewstep.paths import PATHS
from fewstep.readouts import CausalTransformer, CommitmentHead, LanguageModel, LinearReadout, TransformerReadout
from fewstep.schedules import TimeGrid, quantile_grid

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FORMAT = 1

PART_CLASSES: dict[str, tuple[type[nn.Module], ...]] = {
    "autoencoder": (TransformerAutoencoder,),
    "readout": (LinearReadout, TransformerReadout),
    "denoiser": (RegressionDenoiser, CategoricalDenoiser),
    "head": (CausalTransformer,),
    "language_model": (CausalTransformer,),
}
"""What each part may be, in the order in which the stages make them; the names are also those of the weight files."""

COMPONENTS = tuple(PART_CLASSES)
CLASSES: dict[str, type[nn.Module]] = {cls.__name__: cls for classes in PART_CLASSES.values() for cls in classes}
STAGE_OF = {"autoencoder": "autoencoder", "readout": "autoencoder", "denoiser": "flow"}
"""The training stage that makes a part, where it is not called like the part."""


@dataclass(frozen=True)
class Identity:
    """What a model is, so that it is never used as something else (this project's definition).

    ``path`` and ``prediction`` name what the denoiser was trained on, ``objective`` how, ``trained_nfe`` for how many
    network evaluations (None: any number), and ``estimate`` what came of it: the mean of the data given x_t, the end of
    the trajectory, or the point that a jump aims at. ``grid_mean`` and ``grid_std`` place the sampler's steps where
    training spent its time (logit-normal quantiles; None: equal steps). ``trust_level`` is the commitment head's (rms).
    """

    block_size: int
    tokenizer_fingerprint: str
    time_convention: str = "t=0 noise, t=1 data"
    path: str = "linear"
    prediction: str = "x1"
    objective: str = ""
    trained_nfe: int | None = None
    estimate: str = POSTERIOR_MEAN.name
    grid_mean: float | None = None
    grid_std: float | None = None
    trust_level: float = 0.5
    source: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    def default_grid(self) -> TimeGrid:
        """Where training spent its time: logit-normal quantiles, or equal steps."""
        return quantile_grid(self.grid_mean, self.grid_std)


@dataclass
class ModelBundle:
    """The parts of a model. A part that was not trained yet is None.

    ``denoiser`` is the network alone, ``head`` and ``language_model`` the causal transformers; :meth:`flow`,
    :meth:`commitment_head` and :meth:`scorer` give them their meaning, or raise ``UserError`` for a missing part.
    """

    tokenizer: "PreTrainedTokenizerFast"
    identity: Identity
    autoencoder: TransformerAutoencoder | None = None
    readout: LinearReadout | TransformerReadout | None = None
    denoiser: RegressionDenoiser | CategoricalDenoiser | None = None
    head: CausalTransformer | None = None
    language_model: CausalTransformer | None = None

    def parts(self) -> dict[str, nn.Module]:
        """The parts that are there, by name."""
        found = {name: getattr(self, name) for name in COMPONENTS}
        return {name: part for name, part in found.items() if part is not None}

    def require(self, *names: str, source: str = "this model") -> None:
        """Raise ``UserError`` unless all parts called ``names`` are there."""
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            have = ", ".join(self.parts()) or "nothing"
            stages = dict.fromkeys(STAGE_OF.get(name, name) for name in missing)
            raise UserError(
                f"{source} has no {' and no '.join(missing)} (it holds: {have}): "
                f"train the stage {' and '.join(stages)} first, and merge several checkpoints by `fewstep convert`"
            )

    def flow(self) -> FlowModel:
        """The denoiser as a flow model on its path."""
        self.require("denoiser")
        assert self.denoiser is not None
        return FlowModel(self.denoiser, PATHS[self.identity.path](), self.identity.prediction)  # type: ignore[arg-type]

    def reader(self) -> LinearReadout | TransformerReadout:
        """The parallel readout."""
        self.require("readout")
        assert self.readout is not None
        return self.readout

    def latent_shape(self) -> tuple[int, int]:
        """K latent positions of D dimensions that stand for one block."""
        self.require("autoencoder")
        assert self.autoencoder is not None
        return self.autoencoder.num_latents(self.identity.block_size), self.autoencoder.latent_dim

    def commitment_head(self) -> CommitmentHead:
        """The commitment head."""
        self.require("head")
        assert self.head is not None
        return CommitmentHead(self.head, trust_level=self.identity.trust_level)

    def scorer(self) -> LanguageModel:
        """The language model."""
        self.require("language_model")
        assert self.language_model is not None
        return LanguageModel(self.language_model)

    def to(self, device: torch.device | str) -> "ModelBundle":
        """Move every part to a device, in evaluation mode; returns itself."""
        for part in self.parts().values():
            part.to(device).eval()
        return self

    def manifest(self) -> dict[str, Any]:
        """What ``config.json`` says: the identity, and class and constructor arguments of every part."""
        parts = {name: {"class": type(part).__name__, "config": part.config} for name, part in self.parts().items()}
        return {"format": FORMAT, "kind": "text", "identity": asdict(self.identity), "parts": parts}

    def save_pretrained(self, folder: str | FilePath, *, overwrite: bool = False) -> None:
        """Write ``config.json``, one safetensors file a part and the tokenizer, whole or not at all.

        Raises ``UserError`` where the folder holds something already (unless ``overwrite``) or cannot be written.
        """
        weights = {name: part.state_dict() for name, part in self.parts().items()}
        storage.write_folder(FilePath(folder), self.manifest(), weights, self.tokenizer, overwrite=overwrite)

    @classmethod
    def from_pretrained(cls, path: str | FilePath) -> "ModelBundle":
        """Load a folder written by :meth:`save_pretrained`, or a ``.ckpt`` file of any training stage.

        Strict: every tensor must be there and fit. Raises ``UserError`` with one line for whatever is wrong.
        """
        path = FilePath(path).expanduser()
        stored = storage.read_model(path, "text")
        assert stored.tokenizer is not None
        bundle = cls.from_stored(stored.manifest, stored.weights, stored.tokenizer, str(path))
        if tokenizer_fingerprint(bundle.tokenizer) != bundle.identity.tokenizer_fingerprint:
            raise UserError(f"{path}: its tokenizer is not the one that the model was trained with")
        return bundle

    @classmethod
    def from_stored(
        cls,
        manifest: dict[str, Any],
        weights: dict[str, dict[str, Tensor]],
        tokenizer: "PreTrainedTokenizerFast",
        source: str,
    ) -> "ModelBundle":
        """Build the parts that a manifest names and load their weights strictly. ``source`` is for messages."""
        storage.check_manifest(manifest, source)
        if manifest.get("format") != FORMAT:
            raise UserError(f"{source}: model format {manifest.get('format')}, this fewstep reads {FORMAT}")
        identity = _identity(manifest["identity"], source)
        storage.warn_of_newer(identity.versions, source)
        parts: dict[str, Any] = {}
        for name, description in manifest["parts"].items():
            _check_part(name, description["class"], source)
            parts[name] = build_part(description["class"], description["config"], identity, source)
            storage.load_strictly(parts[name], weights.get(name, {}), f"{source} ({name})")
        bundle = cls(tokenizer, identity, **parts).to("cpu")
        check_agreement(bundle, source)
        return bundle


def check_agreement(bundle: ModelBundle, source: str) -> None:
    """Raise ``UserError`` unless the parts have one vocabulary, latent dimension and stride, and the block fits."""
    configs: dict[str, dict[str, Any]] = {name: part.config for name, part in bundle.parts().items()}  # type: ignore[misc]
    for key in ("vocab_size", "latent_dim", "stride"):
        on_latents = {name: config for name, config in configs.items() if key != "stride" or name != "language_model"}
        values = {name: config[key] for name, config in on_latents.items() if config.get(key) is not None}
        if len(set(map(repr, values.values()))) > 1:
            listed = ", ".join(f"{name} {value}" for name, value in values.items())
            raise UserError(f"{source}: parts that do not fit together, {key} is {listed}")
    two_times = ESTIMATES[bundle.identity.estimate].two_times
    if bundle.denoiser is not None and two_times and not bundle.flow().two_times:
        raise UserError(f"{source}: a flow map, but its denoiser has one time only")
    positions = configs.get("denoiser", {}).get("num_positions")
    if positions is not None and bundle.autoencoder is not None and positions < bundle.latent_shape()[0]:
        raise UserError(
            f"{source}: the denoiser has {positions} latent positions, a block of {bundle.identity.block_size} tokens "
            f"needs {bundle.latent_shape()[0]}"
        )


def _check_part(name: str, class_name: Any, source: str) -> None:
    if name not in PART_CLASSES:
        raise UserError(f"{source}: unknown part {name!r}, expected some of {', '.join(COMPONENTS)}")
    expected = [cls.__name__ for cls in PART_CLASSES[name]]
    if class_name not in expected:
        raise UserError(f"{source}: {name} is of class {class_name!r}, expected {' or '.join(expected)}")


def build_part(class_name: str, config: dict[str, Any], identity: Identity, source: str) -> nn.Module:
    """A part with fresh weights from its class name and constructor arguments."""
    if class_name not in CLASSES:
        raise UserError(f"{source}: unknown part class {class_name!r}, expected one of {', '.join(CLASSES)}")
    arguments = dict(config)
    if class_name == CategoricalDenoiser.__name__:
        arguments["path"] = PATHS[identity.path]()
    try:
        return CLASSES[class_name](**arguments)
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError, RuntimeError) as error:
        raise UserError(f"{source}: {class_name} cannot be built from its config ({error})") from None


def _identity(values: dict[str, Any], source: str) -> Identity:
    known = {item.name for item in fields(Identity)}
    values = {"estimate": Identity.estimate, **values}  # models saved before there were others
    if set(values) != known:
        raise UserError(f"{source}: identity whose keys {sorted(set(values) ^ known)} are too many or missing")
    identity = Identity(**values)
    if type(identity.block_size) is not int or identity.block_size < 1:
        raise UserError(f"{source}: block_size is {identity.block_size!r}, expected a whole number of at least 1")
    if identity.time_convention != Identity.time_convention:
        raise UserError(
            f"{source}: time runs {identity.time_convention!r}, this fewstep has {Identity.time_convention!r}"
        )
    if identity.prediction not in get_args(PredictionType):
        expected = " or ".join(get_args(PredictionType))
        raise UserError(f"{source}: unknown prediction {identity.prediction!r}, expected {expected}")
    if identity.estimate not in list(ESTIMATES):
        expected = " or ".join(ESTIMATES)
        raise UserError(f"{source}: unknown estimate {identity.estimate!r}, expected {expected}")
    if not isinstance(identity.path, str) or identity.path not in PATHS:
        raise UserError(f"{source}: unknown path {identity.path!r}, expected one of {', '.join(PATHS)}")
    storage.check_identity(identity, source)
    return identity
