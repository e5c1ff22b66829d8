"""Out of the house: a trained encoder in the form of another library, which loads it without ours."""
