"""Where a process runs: ranks, devices, engines, precision, and being asked to stop.

Comes in: a network and a launcher's environment. Goes out: steps taken, the same at any number of ranks. Files of a run
may not enter, nor may data.
"""
