"""``python -m heliostat``."""

from heliostat.cli.app import main

if __name__ == "__main__":
    main()
