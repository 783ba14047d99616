"""One self-contained page about a run or its detections: numbers, errors, every video, the action units, sweeps."""
