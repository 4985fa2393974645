"""Predictions of finished runs: one by one, combined, analysed; what follows them."""

import sys

# The forms of `python -m seglib ...` before it was the one command line; each named a module of this folder.
_MOVED = {f"seglib.inference.{name}": f"python -m seglib {name}" for name in ("soup", "submission")}

if sys.argv[:1] == ["-m"] and (old := next((each for each in sys.orig_argv if each in _MOVED), "")):
    sys.exit(f"python -m {old} is now: {_MOVED[old]}")
