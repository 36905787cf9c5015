"""Runs the command line: python -m testbed."""

from __future__ import annotations

from testbed.cli.main import main

if __name__ == "__main__":
    main()
