"""What this machine has, what will not work on it, and what helps; each finding is only what we alone know."""
