"""From published feature files to shards to batches."""
