"""The parts of ``read_text.py``: its text, its training, what it measures, and how it reports."""
