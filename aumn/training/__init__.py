"""A run put together: where it starts, its loop, its validation, and what it leaves in the run folder.

The one room that builds engines and opens the tracking mirror. Comes in: a RunConfig. Goes out: a run folder with a
model.
"""
