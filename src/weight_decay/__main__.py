"""`python -m weight_decay` is the command `weight-decay`."""

from weight_decay.cli import main

if __name__ == "__main__":
    main()
