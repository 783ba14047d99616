"""The network of Eq. 1-15: tensors in, tensors out. It knows nothing of files and runs, of ranks what a `Group` tells."""
