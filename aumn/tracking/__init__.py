"""What a run leaves behind for others: metrics and registered models."""
