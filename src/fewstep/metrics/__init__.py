"""Metrics of sampled tokens (text.py) and of images (frechet.py), and intervals of measured numbers (intervals.py)."""
