"""`python -m kvbench` is the console script."""

from kvbench.cli import entry

if __name__ == "__main__":
    entry()
