"""The `gyrfalcon` command and `python -m gyrfalcon`: cli/main.py, and an end without a traceback where
Ctrl-C comes while Python still imports it.
"""

import sys

INTERRUPTED = 130


def main() -> int:
    """Runs one command and returns its exit code."""
    try:
        from gyrfalcon.cli import main as cli

        return cli.main()
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
