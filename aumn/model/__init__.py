"""The network of Eq. 1-15: tensors in, tensors out; it knows nothing of ranks, files or runs."""
