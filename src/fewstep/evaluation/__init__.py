"""Measuring models: sweeps of samples against yardsticks, and diagnoses of readout and flow. Import from the files."""
