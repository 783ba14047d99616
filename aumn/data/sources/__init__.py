"""Where features come from: finds a release's layout, opens its containers, checks and reads its arrays.

Comes in: a folder or an archive of a user. Goes out: numpy arrays, snippets x width. Shards may not enter.
"""
