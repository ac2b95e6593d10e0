"""Objectives and samplers compared side by side."""
