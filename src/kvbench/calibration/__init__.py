"""What is measured of a model once: which of its heads do what, how large its channels get."""
