"""Studies on top of the core, which does not know them."""
