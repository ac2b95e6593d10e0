"""Diagnostics of decoders and flows, given as callables and tensors; import each from its file.

They follow arXiv:2606.30705. The formulas of DABI and CCI are this project's: docs/reference/diagnostics.md says why.
"""
