"""The report on runs."""
