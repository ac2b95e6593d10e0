"""The command line: one file a command, each offering ``main(argv: list[str]) -> int``."""
