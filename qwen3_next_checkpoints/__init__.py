"""What qwen3_next.py leaves out: other formats and families, more weights than memory, the hub, saving.

Each module is imported when a checkpoint or a call needs it. All that they share is here; none of them imports
another, or anything else of this project: what they need is handed to them.
"""

from collections.abc import Mapping
from typing import Any


def expect(right: Any, otherwise: str):
    """Raises ValueError with the message, on one line, unless `right`."""
    if not right:
        raise ValueError(" ".join(otherwise.splitlines()))


def settings_of(given: Any) -> dict:
    """The content of a dict or of a transformers GenerationConfig, without what is not set.

    Raises ValueError for anything else.
    """
    given = given.to_dict() if hasattr(given, "to_dict") else given
    expect(isinstance(given, Mapping), f"generation_config is a {type(given).__name__}, expected a GenerationConfig")
    return {name: value for name, value in given.items() if value is not None and name != "transformers_version"}
