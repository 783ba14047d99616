"""Files in, one HTML page out: measures, every video, the action units, the curves of the run folder.

The page needs no network and no server. No training code may enter.
"""
