"""Measure a KV-cache strategy: python run.py strategy=h2o model=tiny; what there is: kvbench list."""

if __name__ == "__main__":  # measuring processes import this file again, and need nothing of it
    import sys

    from kvbench.cli.run import main

    sys.exit(main(sys.argv[1:]))
