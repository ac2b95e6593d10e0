"""The saved model of text or of images: its identity and its parts, in a folder, a checkpoint or on the hub.

K latent positions, D latent dimension.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path as FilePath
from typing import Any, Literal, cast

import torch
from torch import nn

from fewstep import storage
from fewstep.data.everyday import EVERYDAY, ORIGIN
from fewstep.data.tokenizer import tokenizer_fingerprint
from fewstep.denoisers import ESTIMATES, POSTERIOR_MEAN, FlowModel, PredictionType
from fewstep.errors import UserError, first_line
from fewstep.paths import PATHS, PathName
from fewstep.readouts import CausalTransformer, CommitmentHead, LanguageModel, ReadoutChoice
from fewstep.registry import import_attribute, validated
from fewstep.schedules import LogitNormalGrid, TimeGrid, UniformGrid
from fewstep.shapes import own_defaults, plain
from fewstep.storage import Manifest, PartSpec
from fewstep.types import Blocks, LatentEncoder, Readout

Kind = Literal["text", "images"]

PART_TYPES: dict[str, type] = {
    "autoencoder": LatentEncoder,
    "readout": Readout,
    "denoiser": nn.Module,
    "head": CausalTransformer,
    "language_model": CausalTransformer,
}
"""What each part must be, in the order in which the stages train them; an image model has the first and third."""
STAGE_OF = {"readout": "autoencoder", "denoiser": "flow"}
"""The training stage of a part, where the two have different names."""
BUILT_IN = ("fewstep.autoencoders", "fewstep.readouts", "fewstep.denoisers", "fewstep.lab.images")
"""Packages whose classes are always built; others have to be allowed by the caller."""
SPARE_NUMBERS = 1_000_000
"""A part may have so many numbers beside twice those that are stored: buffers that are computed, layers replaced."""
FIELDS_OF_PART = {
    "autoencoder": ("length_counts",),
    "denoiser": (
        "path",
        "prediction",
        "objective",
        "trained_nfe",
        "estimate",
        "grid_mean",
        "grid_std",
        "known_dropped",
    ),
    "head": ("trust_level",),
}
"""Fields of an identity that describe one part, and go with it where models are merged."""
LATER_FIELDS = ("blocks", "length_counts", "known_dropped", "text_field", "prompt_field")
"""Fields of an identity that a folder of format 2 may lack, which was written before there was a choice."""
CORPORA = {
    "sotu": "State of the Union addresses, 1790 to 2026 (US federal texts, in the public domain)",
    EVERYDAY: ORIGIN,
    "grammar": "sentences drawn from the project's own grammar",
    "Digits": "scikit-learn's handwritten digits (UCI, CC BY 4.0)",
    "DrawnShapes": "shapes drawn by the project",
}
"""Training data whose origin and licence are known."""
TASK = {"text": "text-generation", "images": "unconditional-image-generation"}
ABOUT = {
    "text": "A few-step text generator: a flow on continuous latents, and readouts from latents to tokens.",
    "images": "An image autoencoder with a flow on its latents, the continuous counterpart of a text model.",
}


@dataclass(frozen=True)
class Identity:
    """What a model is, so that it is never used as something else.

    ``block_size`` tokens, ``tokenizer_fingerprint`` and ``blocks`` are of text (0 and empty for images).
    ``length_counts``: of how many training texts 1, 2, ... ``block_size`` tokens stand in a block, from which lengths
    are drawn; empty where the model writes the ends of text that fill a block. ``path`` and
    ``prediction`` say what the denoiser was trained on, ``objective`` how, ``trained_nfe`` for how many network
    evaluations (None: any number). ``estimate``: its output is the mean of the data given x_t, the end of the
    trajectory, or the point that a jump aims at. ``grid_mean`` and ``grid_std`` place the sampler's steps where
    training spent its time (logit-normal quantiles; None: equal steps). ``known_dropped`` is the share of training
    examples whose known part was left out, which guidance needs. ``trust_level`` (rms) is the commitment
    head's. ``source`` names the training data, ``text_field`` and ``prompt_field`` the fields of its records (None: no
    prompts), and ``source_config`` its settings, for images.
    """

    block_size: int = 0
    tokenizer_fingerprint: str = ""
    blocks: Blocks = "packed"
    length_counts: tuple[int, ...] = ()
    kind: Kind = "text"
    time_convention: Literal["t=0 noise, t=1 data"] = "t=0 noise, t=1 data"
    path: PathName = "linear"
    prediction: PredictionType = "x1"
    objective: str = ""
    trained_nfe: int | None = None
    estimate: str = POSTERIOR_MEAN.name
    grid_mean: float | None = None
    grid_std: float | None = None
    known_dropped: float = 0.0
    trust_level: float = 0.5
    source: str = ""
    text_field: str = "text"
    prompt_field: str | None = None
    source_config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def default_grid(self) -> TimeGrid:
        """The time grid that training suggests: logit-normal quantiles, or equal steps."""
        if self.grid_mean is None or self.grid_std is None:
            return UniformGrid()
        return LogitNormalGrid(self.grid_mean, self.grid_std)


@dataclass
class SavedModel:
    """A model with its identity; a part that was not trained yet is None, and so is the tokenizer of an image model.

    ``denoiser``, ``head`` and ``language_model`` are networks alone: :meth:`flow`, :meth:`commitment_head` and
    :meth:`scorer` give them their meaning. All accessors raise ``UserError`` for a missing part.
    """

    tokenizer: Any  # a PreTrainedTokenizerFast; None for images
    identity: Identity
    autoencoder: Any = None  # see encoder()
    readout: Readout | None = None
    denoiser: nn.Module | None = None
    head: CausalTransformer | None = None
    language_model: CausalTransformer | None = None

    def parts(self) -> dict[str, Any]:
        """The parts that exist, by name."""
        parts = {name: getattr(self, name) for name in PART_TYPES}
        return {name: part for name, part in parts.items() if part is not None}

    def require(self, *names: str, source: str = "this model") -> None:
        """Raise ``UserError`` unless the model has all parts ``names``."""
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            stages = dict.fromkeys(STAGE_OF.get(name, name) for name in missing)
            raise UserError(
                f"{source} has no {' and no '.join(missing)} (it holds: {', '.join(self.parts()) or 'nothing'}): "
                f"train the stage {' and '.join(stages)} first, and merge several checkpoints by `fewstep convert`"
            )

    def _part(self, name: str) -> Any:
        self.require(name)
        return getattr(self, name)

    def encoder(self) -> LatentEncoder:
        """The encoder of tokens to latents."""
        return cast(LatentEncoder, self._part("autoencoder"))

    def reader(self) -> Readout:
        """The parallel readout."""
        return cast(Readout, self._part("readout"))

    def flow(self) -> FlowModel:
        """The denoiser as a flow model on its path."""
        return FlowModel(self._part("denoiser"), PATHS[self.identity.path](), self.identity.prediction)

    def commitment_head(self, *, sees_tokens: bool = True) -> CommitmentHead:
        """The commitment head; ``sees_tokens`` as there."""
        return CommitmentHead(self._part("head"), trust_level=self.identity.trust_level, sees_tokens=sees_tokens)

    def open_readout(self, choice: ReadoutChoice) -> Any:
        """The readout of a choice, such as one of :data:`fewstep.readouts.READOUTS`."""
        self.require(choice.part)
        return choice.open(self)

    def scorer(self) -> LanguageModel:
        """The language model."""
        return LanguageModel(self._part("language_model"))

    def latent_shape(self) -> tuple[int, int]:
        """K and D of the latents of one block of tokens, or of one image read row by row."""
        return self.encoder().num_latents(self.identity.block_size), self.encoder().latent_dim

    @property
    def device(self) -> torch.device:
        """Where the parts are; an encoder without weights is wherever the others are."""
        tensors = chain.from_iterable(chain(part.parameters(), part.buffers()) for part in self.parts().values())
        return next(tensors).device

    def to(self, device: torch.device | str) -> "SavedModel":
        """Move every part to a device, in evaluation mode; returns itself."""
        for part in self.parts().values():
            part.to(device).eval()
        return self

    def manifest(self) -> Manifest:
        """Identity, and class and constructor arguments of every part. Raises ``UserError`` for a class in a script."""
        specs = {
            name: PartSpec(class_path(type(part)), plain(dict(part.config))) for name, part in self.parts().items()
        }
        return Manifest(plain(asdict(self.identity)), specs)

    def save_pretrained(
        self, folder: str | FilePath, *, overwrite: bool = False, scores: str = "", license: str | None = None
    ) -> None:
        """Write config, one safetensors file a part, tokenizer and model card: all of it or nothing.

        ``scores`` (Markdown, such as the table of ``fewstep evaluate``) and ``license`` go into the card. Raises
        ``UserError`` where the folder holds something already (unless ``overwrite``) or cannot be written.
        """
        folder = FilePath(folder).expanduser()
        weights = {part: network.state_dict() for part, network in self.parts().items()}
        card = model_card(folder.name, self.manifest(), scores=scores, license=license)
        storage.write_folder(folder, self.manifest(), weights, self.tokenizer, card, overwrite=overwrite)

    def push_to_hub(self, repo_id: str, *, private: bool = False, scores: str = "", license: str | None = None) -> str:
        """Upload to the hub's model ``owner/name``, which is created if need be; returns its address.

        The token is that of ``hf auth login``. Raises ``UserError`` where the hub refuses.
        """
        from huggingface_hub import HfApi

        api = HfApi()
        with tempfile.TemporaryDirectory() as scratch:
            folder = FilePath(scratch) / "model"
            self.save_pretrained(folder)
            card = model_card(repo_id, self.manifest(), scores=scores, license=license)
            (folder / storage.CARD).write_text(card, encoding="utf-8")
            try:
                address = api.create_repo(repo_id, private=private, exist_ok=True)
                api.upload_folder(repo_id=repo_id, folder_path=folder)
            except Exception as error:  # the HTTP library, and so the exception, depends on the hub library's version
                reason, remedy = f"{type(error).__name__}: {first_line(error)}", "and your token (hf auth login)"
                raise UserError(
                    f"{repo_id} could not be written to the hub ({reason}): check the name owner/name {remedy}"
                ) from None
        return str(address)

    @classmethod
    @own_defaults()
    def from_pretrained(
        cls,
        path: str | FilePath,
        *,
        allow: Sequence[str] = (),
        revision: str | None = None,
        kind: Kind | None = None,
    ) -> "SavedModel":
        """Load a model folder, a ``.ckpt`` file of any training stage, or ``owner/name`` from the hub, on the CPU.

        Classes of fewstep are built, and those of the packages in ``allow``, whose code is run. ``revision`` of a hub
        model: branch, tag or commit. Strict: every tensor must exist and fit. Raises ``UserError`` with one line for
        whatever is wrong, and for a model of another ``kind``.
        """
        stored, source = storage.read_model(storage.locate(path, revision)), str(path)
        identity = _checked_identity(stored.manifest, source)
        _require_estimate(identity, source, allow)
        if kind is not None and identity.kind != kind:
            raise UserError(
                f"{source} holds a model of {identity.kind}, expected one of {kind}: give a model trained on {kind}"
            )
        model = cls(stored.tokenizer, identity)
        for name, spec in stored.manifest.parts.items():
            weights = stored.weights[name]
            with storage.at_most_numbers(2 * sum(tensor.numel() for tensor in weights.values()) + SPARE_NUMBERS):
                part = build_part(name, spec, source, allow=allow)
            storage.load_strictly(part, weights, f"{source} ({name})")
            setattr(model, name, part)
        model.to("cpu").check(source)
        storage.warn_of_newer(identity.versions, source)
        return model

    def check(self, source: str) -> None:
        """Raise ``UserError`` unless the parts fit together, and the tokenizer is that of the identity."""
        for key in ("vocab_size", "latent_dim", "stride"):
            values = {name: part.config.get(key) for name, part in self.parts().items()}
            if key == "stride":
                values.pop("language_model", None)
            if len({repr(value) for value in values.values() if value is not None}) > 1:
                listed = ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
                raise UserError(f"{source}: parts that do not fit together, {key} is {listed}")
        if self.identity.kind == "images":
            self.require("autoencoder", source=source)
        elif tokenizer_fingerprint(self.tokenizer) != self.identity.tokenizer_fingerprint:
            raise UserError(f"{source}: its tokenizer is not the one that the model was trained with")
        if self.denoiser is not None:
            self._check_denoiser(source)
        try:
            self.head and self.commitment_head()
            self.language_model and self.scorer()
        except ValueError as error:
            raise UserError(f"{source}: {error}") from None

    def _check_denoiser(self, source: str) -> None:
        if ESTIMATES[self.identity.estimate].two_times and not self.flow().two_times:
            raise UserError(f"{source}: a flow map, but its denoiser has one time only")
        if self.autoencoder is None:
            return
        (positions, latent_dim), config = self.latent_shape(), self.parts()["denoiser"].config
        if config.get("num_positions", positions) < positions or config.get("latent_dim", latent_dim) != latent_dim:
            raise UserError(
                f"{source}: the denoiser is built for {config.get('num_positions')} latent positions of "
                f"{config.get('latent_dim')} dimensions, the model needs {positions} of {latent_dim}"
            )


def class_path(cls: type) -> str:
    """The shortest dotted path that imports ``cls``. Raises ``UserError`` for a class of a script."""
    packages = cls.__module__.split(".")
    if packages[0] == "__main__" or "<locals>" in cls.__qualname__:
        raise UserError(f"{cls.__qualname__} is defined in a script or a function: a saved part's class needs a module")
    for length in range(1, len(packages)):
        package = ".".join(packages[:length])
        if getattr(sys.modules.get(package), cls.__name__, None) is cls:
            return f"{package}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def build_part(name: str, spec: PartSpec, source: str, *, allow: Sequence[str] = ()) -> nn.Module:
    """A part with fresh weights. Raises ``UserError`` unless its class is allowed and fits the part's protocol."""
    if name not in PART_TYPES:
        raise UserError(f"{source}: unknown part {name!r}, expected some of {', '.join(PART_TYPES)}")
    trusted = (*BUILT_IN, *([allow] if isinstance(allow, str) else allow))
    if not _within(spec.class_path, trusted):
        package = spec.class_path.partition(".")[0]
        raise UserError(
            f"{source}: {name} is of class {spec.class_path}, outside of fewstep: if you trust the code of {package}, "
            f"allow it (allow=({package!r},), or --allow {package})"
        )
    cls = import_attribute(spec.class_path, f"{source}: class of {name}")
    if not isinstance(cls, type) or not issubclass(cls, nn.Module) or not _within(cls.__module__, trusted):
        raise UserError(f"{source}: {name} is of class {spec.class_path}, which is no network of these packages")
    try:
        part = cls(**spec.init_args)
    except Exception as error:  # a class from outside may raise anything
        raise UserError(
            f"{source}: {spec.class_path} cannot be built from its init_args ({first_line(error)})"
        ) from None
    if not isinstance(part, PART_TYPES[name]) or not hasattr(part, "config"):
        raise UserError(f"{source}: {name} is of class {spec.class_path}, which is no {PART_TYPES[name].__name__}")
    return part


def _within(dotted: str, packages: Sequence[str]) -> bool:
    return any(dotted == package or dotted.startswith(f"{package}.") for package in packages)


def kind_of(path: str | FilePath) -> Kind:
    """Whether a saved model is of text or of images, without reading a folder's weights. Raises ``UserError``."""
    return _checked_identity(storage.read_manifest(storage.locate(path)), str(path)).kind


def _checked_identity(manifest: Manifest, source: str) -> Identity:
    defaults = asdict(Identity())
    if manifest.format > 1:
        defaults = {name: defaults[name] for name in LATER_FIELDS}
    identity = validated(Identity, {**defaults, **manifest.identity}, f"{source}: identity")
    try:
        identity.default_grid()
    except (ValueError, OverflowError) as error:
        raise UserError(f"{source}: {error}: save the model again") from None
    if identity.kind == "text" and identity.block_size < 1:
        raise UserError(f"{source}: block_size is {identity.block_size}, expected at least 1")
    counts, size = identity.length_counts, identity.block_size
    if counts and (len(counts) != size or not 0 <= min(counts) <= sum(counts) <= 2**53 or not any(counts)):
        raise UserError(f"{source}: length_counts are {str(counts)[:40]}, expected {size} numbers of texts")
    return identity


def _require_estimate(identity: Identity, source: str, allow: Sequence[str]) -> None:
    """Import the objective of an allowed package, which registers its estimate. Raises ``UserError`` without one."""
    package, is_outside, _ = identity.objective.partition(".")
    if identity.estimate not in ESTIMATES and is_outside and _within(identity.objective, allow):
        import_attribute(identity.objective, f"{source}: objective")
    if identity.estimate not in ESTIMATES:
        owner = package if is_outside else "the package of its objective"
        raise UserError(
            f"{source}: unknown estimate {identity.estimate!r}, expected one of {', '.join(ESTIMATES)}; of another "
            f"package: import that first, or allow {owner} (--allow)"
        )


def model_card(name: str, manifest: Manifest, *, scores: str = "", license: str | None = None) -> str:
    """Markdown with YAML front matter. ``scores`` is a Markdown table, ``license`` the hub's name of one."""
    from huggingface_hub import ModelCardData

    identity, kind = manifest.identity, manifest.identity["kind"]
    tags = ["flow-matching", "few-step"]
    front = ModelCardData(library_name="fewstep", pipeline_tag=TASK[kind], tags=tags, license=license)
    sections = [
        f"---\n{front}\n---\n\n# {name}\n\n{ABOUT[kind]}\n",
        f"- Training data: {CORPORA.get(identity['source'], identity['source'] or 'not recorded')}",
        f"- License of the weights: {license or 'not stated'}",
        f"- Objective: {identity['objective'] or 'not recorded'}; path: {identity['path']}",
        f"- Sampling steps that it was trained for: {identity['trained_nfe'] or 'any number'}",
        f"- Saved by fewstep {identity['versions'].get('fewstep', '(version not recorded)')}\n",
    ]
    if scores:
        sections.append(f"## Scores\n\n{scores.strip()}\n")
    if kind == "text" and "denoiser" in manifest.parts:
        command = f"fewstep sample {name} --num_samples 4 --steps {identity['trained_nfe'] or 4}"
        sections.append(f"## Use\n\n```bash\npip install fewstep\n{command}\n```\n")
    return "\n".join(sections)


def merge_models(models: Sequence[SavedModel], sources: Sequence[str]) -> SavedModel:
    """One model from the parts of several; of a part that comes twice the later one is taken.

    The identity is the last model's, except that fields that describe one part go with the part. Raises ``UserError``
    where kind, tokenizer, block size or the autoencoder's weights differ.
    """
    origin: dict[str, int] = {}
    for index, model in enumerate(models):
        for what in ("kind", "tokenizer_fingerprint", "block_size", "blocks"):
            ours, first = getattr(model.identity, what), getattr(models[0].identity, what)
            if ours != first:
                raise UserError(f"{sources[index]} and {sources[0]} differ in {what} ({ours}, {first}): cannot merge")
        if "autoencoder" in origin and model.autoencoder is not None:
            known = origin["autoencoder"]
            check_same_autoencoder(models[known].autoencoder, model.autoencoder, sources[known], sources[index])
        origin |= dict.fromkeys(model.parts(), index)
    identity = models[-1].identity
    for part, names in FIELDS_OF_PART.items():
        if part in origin:
            theirs = models[origin[part]].identity
            identity = replace(identity, **{name: getattr(theirs, name) for name in names})
    parts = {name: getattr(models[index], name) for name, index in origin.items()}
    merged = SavedModel(models[-1].tokenizer, identity, **parts)
    merged.check(" + ".join(sources))
    return merged


def check_same_autoencoder(first: Any, second: Any, first_source: str, second_source: str) -> None:
    """Raise ``UserError`` unless both autoencoders have the same weights; the sources name them in the message."""
    ours, theirs = first.state_dict(), second.state_dict()
    if ours.keys() != theirs.keys() or not all(torch.equal(ours[key], theirs[key]) for key in ours):
        raise UserError(
            f"{first_source} and {second_source} hold different autoencoders: their latents do not mean the same; "
            "use together only what was trained on one autoencoder"
        )
