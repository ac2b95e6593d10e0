"""``fewstep convert``: training checkpoints to a model folder."""

from pathlib import Path

from fewstep.cli.arguments import OneLineParser


def main(argv: list[str]) -> int:
    """Merge the checkpoints and model folders of ``argv`` into one folder. Raises ``UserError``."""
    parser = OneLineParser(
        "fewstep convert",
        "Make one model folder of checkpoints or model folders. Of a part that comes twice the later one is taken; "
        "tokenizer, block size and autoencoder must be the same in all.",
    )
    parser.add_argument("sources", nargs="+", metavar="CKPT", help="a .ckpt file or a model folder")
    parser.add_argument("out", metavar="OUT", help="the folder to write")
    parser.add_argument(
        "--allow", action="append", default=[], metavar="PACKAGE", help="package whose classes may be built; repeatable"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the model in OUT where there is one")
    args = parser.parse_args(argv)

    from fewstep import storage  # torch comes with it: not for --help
    from fewstep.model import SavedModel, merge_models

    out = Path(args.out).expanduser()
    storage.check_target(out, overwrite=args.overwrite)
    models = [SavedModel.from_pretrained(source, allow=args.allow, kind="text") for source in args.sources]
    merged = merge_models(models, args.sources)
    merged.save_pretrained(out, overwrite=args.overwrite)
    print(f"{out}: {', '.join(merged.parts())}; block of {merged.identity.block_size} tokens")
    return 0
