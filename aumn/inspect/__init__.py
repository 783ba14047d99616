"""A shard set looked through: counts, lengths, classes, values, the videos that look wrong, and a picture."""
