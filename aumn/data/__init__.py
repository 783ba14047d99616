"""Features and ground truth in, batches out: sources and truth are read, packed into shards, and loaded again.

Rooms: `sources` (where features come from), `truth` (where instances come from), `packing`, `shards` (the format).
Nothing of the network, of ranks or of runs may enter.
"""
