"""The network of Eq. 1-15: tensors in, tensors out; of ranks it knows what a `bank.Group` tells, of files nothing."""
