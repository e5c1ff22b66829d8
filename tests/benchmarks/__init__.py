"""What `feral bench` runs: each module with a `main` is a benchmark; its keyword arguments are its settings."""
