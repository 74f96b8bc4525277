"""The first cell of every notebook, `from start import root`: finds the repository's folder, and imports from it.

On Colab there is only the notebook. With an address here, build.py puts a badge into each notebook that opens it there,
and has its first cell fetch the rest: `python notebooks/build.py --text` writes both anew, and executes nothing.
"""

import sys
from pathlib import Path

REPOSITORY = ""  # the one place for the address: https://github.com/OWNER/NAME, without a slash at the end
root = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(root / place) for place in (".", "notebooks", "notebooks/experiments", "tiny", "tests")]
