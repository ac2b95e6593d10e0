"""The settings of the recipe study: a base, and what each variant changes."""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """One setting; the defaults are the base that the others vary."""

    vocab_size: int = 2048
    block_size: int = 32
    stride: int = 1
    latent_dim: int = 8
    encoder_depth: int = 2
    readout_depth: int = 2
    autoencoder_width: int = 128
    noise_level_max: float = 1.0
    token_masking: float = 0.0
    latent_dropout: float = 0.0
    autoencoder_minutes: float = 2.5
    categorical: bool = False
    regression_weight: float = 1.0
    cross_entropy_weight: float = 0.0
    prediction: str = "x1"
    path: str = "linear"
    time_mean: float | None = None
    time_std: float = 1.0
    self_conditioning: float = 0.0
    width: int = 192
    depth: int = 5
    num_heads: int = 3
    local_reach: int = 2
    batch_size: int = 32
    learning_rate: float = 2e-3


AUTOENCODER_FIELDS = (
    "vocab_size",
    "block_size",
    "stride",
    "latent_dim",
    "encoder_depth",
    "readout_depth",
    "autoencoder_width",
    "noise_level_max",
    "token_masking",
    "latent_dropout",
    "autoencoder_minutes",
)
"""What decides the autoencoder; settings that agree in these share one."""

CODE: dict[str, object] = {
    "encoder_depth": 0,
    "readout_depth": 0,
    "autoencoder_minutes": 0.6,
    "categorical": True,
    "regression_weight": 0.0,
    "cross_entropy_weight": 1.0,
    "time_mean": -0.3,
    "time_std": 0.6,
}
"""A learned code of single tokens, and the denoiser that thinks in tokens."""

CHANGES: dict[str, dict[str, object]] = {
    "base": {},
    "logit_normal": {"time_mean": 0.0},
    "cross_entropy": {"cross_entropy_weight": 0.1},
    "cross_entropy_logit_normal": {"cross_entropy_weight": 0.1, "time_mean": 0.0},
    "cross_entropy_0.03_logit_normal": {"cross_entropy_weight": 0.03, "time_mean": 0.0},
    "self_conditioning": {"self_conditioning": 0.5},
    "velocity": {"prediction": "velocity"},
    "variance_preserving": {"path": "variance_preserving"},
    "no_local_mixing": {"local_reach": 0},
    "masked": {"token_masking": 0.15},
    "latent_dropout": {"latent_dropout": 0.1},
    "noise_0.5": {"noise_level_max": 0.5},
    "noise_1.5": {"noise_level_max": 1.5},
    "dim_6": {"latent_dim": 6},
    "dim_16": {"latent_dim": 16},
    "dim_32": {"latent_dim": 32},
    "stride_2": {"stride": 2, "latent_dim": 16},
    "vocab_512": {"vocab_size": 512},
    "vocab_1024": {"vocab_size": 1024},
    "vocab_4096": {"vocab_size": 4096},
    "block_16": {"block_size": 16, "batch_size": 64},
    "block_64": {"block_size": 64, "batch_size": 16},
    "code_16": CODE | {"latent_dim": 16},
    "code_8": CODE | {"latent_dim": 8, "time_mean": 0.0},
    "code_16_self_conditioning": CODE | {"latent_dim": 16, "self_conditioning": 0.5},
    "code_16_regression": CODE | {"latent_dim": 16, "categorical": False, "regression_weight": 1.0},
}

SETTINGS = {name: dataclasses.replace(Recipe(), **change) for name, change in CHANGES.items()}  # type: ignore[arg-type]
