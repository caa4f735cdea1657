"""The bench: what is compared, how it is scored, what is kept. The story of a run is in `run.py`."""
