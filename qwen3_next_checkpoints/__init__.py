"""What qwen3_next.py leaves out: other formats and families, more weights than memory, the hub, saving.

Each module is imported when a checkpoint or a call needs it. All that they share is `expect`; none of them imports
another, or anything else of this project: what they need is handed to them.
"""

from typing import Any


def expect(right: Any, otherwise: str):
    """Raises ValueError with the message, on one line, unless `right`."""
    if not right:
        raise ValueError(" ".join(otherwise.splitlines()))
