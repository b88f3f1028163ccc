"""`python -m gyrfalcon` is the `gyrfalcon` command."""

import sys

from gyrfalcon.cli import main

if __name__ == "__main__":
    sys.exit(main())
