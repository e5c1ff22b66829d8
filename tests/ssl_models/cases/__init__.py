"""The contract's cases: a tiny one of every objective, a file a family."""
