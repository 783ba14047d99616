"""Where a run happens: ranks, engines, and later the scheduler."""
