"""The network of Eq. 1-15: tensors in, tensors out; of ranks it knows what `bank.Group` asks, of files and runs nothing."""
