"""What hands `feral tick` to a scheduler: one module a family, each from a `Plan` to the text of its files."""
