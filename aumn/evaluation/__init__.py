"""Detections and ground truth in, mean average precision and errors by kind out; exact at any number of ranks.

The network may not enter, and in a world of one rank neither may torch.
"""
