"""From scores to detections to average precision, in plain numpy."""
