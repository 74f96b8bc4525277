"""What qwen3_next.py leaves out: other formats and families, more weights than memory, the hub, saving.

Each module is imported when a checkpoint or a call needs it. None of them imports anything of this project: what they
need is handed to them.
"""
