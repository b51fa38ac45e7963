"""`python -m polysome.cli`: the command without its entry point."""

import sys

from polysome.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
