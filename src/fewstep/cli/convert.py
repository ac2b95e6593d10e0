"""``fewstep convert``: training checkpoints to a model folder."""

from dataclasses import dataclass
from pathlib import Path

from fewstep.cli.parser import parse_options


@dataclass(kw_only=True)
class ConvertOptions:
    """Merge checkpoints or model folders into one model folder.

    Args:
        sources: .ckpt files or model folders; a part that comes twice is taken from the later one. Tokenizer, block
            size and autoencoder must be the same in all.
        out: the folder to write.
        allow: packages beside fewstep whose classes a model may have, with commas between; their code is run.
        overwrite: replace a model in OUT.
    """

    sources: list[str]
    out: Path
    allow: str = ""
    overwrite: bool = False


def main(argv: list[str]) -> int:
    """Merge as ``argv`` says; returns the exit code."""
    options = parse_options("convert", ConvertOptions, argv)

    from fewstep import storage  # torch comes with it: not for --help
    from fewstep.model import SavedModel, merge_models

    storage.check_target(options.out, overwrite=options.overwrite)
    allow = [name for name in options.allow.split(",") if name]
    models = [SavedModel.from_pretrained(source, allow=allow, kind="text") for source in options.sources]
    merged = merge_models(models, options.sources)
    merged.save_pretrained(options.out, overwrite=options.overwrite)
    print(f"{options.out}: {', '.join(merged.parts())}; block of {merged.identity.block_size} tokens")
    return 0
