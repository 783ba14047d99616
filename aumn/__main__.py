"""`python -m aumn`, which is what torchrun and srun start."""

from aumn.cli import main

if __name__ == "__main__":
    main()
