"""Laws of data whose denoiser is known exactly, so that no failure is due to training.

The flow of a mixture in closed form, also over a model's own latents, and studies of the theorems of arXiv:2606.30705
as we read them: the paper's abstract and summaries were at hand, its constants and proofs were not.
``docs/findings/theory.md`` says which statement is proven there, which is measured here, and which is our reading.
"""
