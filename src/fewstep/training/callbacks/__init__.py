"""What happens around training: averaging, resume points, samples, diagnostics, skipped steps, compilation."""
