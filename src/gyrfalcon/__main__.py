"""The `gyrfalcon` command and `python -m gyrfalcon`: cli/main.py, and an end without a traceback where
Ctrl-C comes while Python still imports it.
"""

import os
import sys

INTERRUPTED = 130


def main() -> int:
    """Runs one command and returns its exit code."""
    # Torch would load whatever is installed for devices, and die of what does not load: device/ does it.
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    try:
        from gyrfalcon.cli import main as cli

        return cli.main()
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
