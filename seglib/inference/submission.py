"""The old form of `python -m seglib submission`."""

import sys

if __name__ == "__main__":
    sys.exit("python -m seglib.inference.submission is now: python -m seglib submission")
