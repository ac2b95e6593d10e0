"""Images to continuous latents and back. B batch, C channels, S pixels a side, c latent channels, s latent side."""

from itertools import chain, pairwise

import torch
from torch import Tensor, nn

from fewstep.autoencoders import Whitening
from fewstep.errors import UserError
from fewstep.objectives.stages import noised
from fewstep.schedules import upcast
from fewstep.shapes import check_sizes
from fewstep.types import LossOutput


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a SiLU beside the identity, on (B, W, H, H). The block starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, width, 3, padding=1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, h: Tensor) -> Tensor:
        """The same shape as ``h``."""
        return h + self.last(nn.functional.silu(self.first(nn.functional.silu(self.norm(h)))))


class ImageAutoencoder(nn.Module):
    """Convolutional encoder to whitened latents, and a continuous decoder.

    An image (C, S, S) becomes (c, s, s) with s = S / 2**``num_halvings``: each halving is a convolution of stride 2
    with ``depth`` residual blocks after it, each doubling in the decoder likewise. Each of the c s s numbers of a
    latent is whitened over the data separately. Every function in it is smooth, so that the decoder has derivatives
    everywhere. Raises ``UserError`` for a size that cannot be halved so often.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        *,
        latent_channels: int = 4,
        num_halvings: int = 2,
        width: int = 32,
        depth: int = 1,
    ) -> None:
        super().__init__()
        sizes = {"channels": channels, "size": size, "latent_channels": latent_channels, "num_halvings": num_halvings}
        check_sizes("ImageAutoencoder", {**sizes, "width": width})
        check_sizes("ImageAutoencoder", {"depth": depth}, least=0)
        side = size // 2**num_halvings
        if side * 2**num_halvings != size:
            raise UserError(
                f"images of {size} pixels a side cannot be halved {num_halvings} times: lower num_halvings, or give "
                f"a size that {2**num_halvings} divides"
            )
        self.config = {**sizes, "width": width, "depth": depth}
        self.latent_shape = (latent_channels, side, side)
        self.latent_dim = latent_channels

        def blocks() -> list[nn.Module]:
            return [ResidualBlock(width) for _ in range(depth)]

        down, up = [channels, *[width] * num_halvings], [*[width] * num_halvings, channels]
        halving = [[nn.Conv2d(a, b, 4, stride=2, padding=1), *blocks()] for a, b in pairwise(down)]
        doubling = [[*blocks(), nn.Conv2d(a, 4 * b, 3, padding=1), nn.PixelShuffle(2)] for a, b in pairwise(up)]
        self.encoder = nn.Sequential(*chain(*halving), nn.SiLU(), nn.Conv2d(width, latent_channels, 1))
        self.from_latent = nn.Conv2d(latent_channels, width, 3, padding=1)
        # Whitening removes the mean image from the latents; the decoder keeps it here.
        self.place = nn.Parameter(torch.zeros(width, side, side))
        self.decoder = nn.Sequential(*chain(*doubling))
        self.whitening = Whitening(latent_channels * side * side)

    def num_latents(self, num_tokens: int) -> int:
        """Positions K that a flow sees in one image, whatever the number of tokens."""
        return self.latent_shape[1] * self.latent_shape[2]

    def encode(self, images: Tensor) -> Tensor:
        """``images`` (B, C, S, S) in [0, 1] to latents ``z`` (B, c, s, s), in at least float32."""
        raw = self.encoder(2 * images - 1)
        rows = raw.flatten(1)[:, None]
        return self.whitening(rows, rows.new_ones(rows.shape[:2], dtype=torch.bool)).reshape(raw.shape)

    def decode(self, z: Tensor) -> Tensor:
        """Latents ``z`` (B, c, s, s) to images (B, C, S, S) in at least float32; values may leave [0, 1] slightly."""
        return 0.5 + 0.5 * upcast(self.decoder(self.from_latent(z) + self.place))


class ImageReconstruction:
    """Squared error of images decoded from latents with noise of a level uniform in [0, ``noise_level_max``]."""

    def __init__(self, *, noise_level_max: float = 1.0) -> None:
        if noise_level_max < 0:
            raise ValueError(f"noise_level_max is {noise_level_max}: expected a level >= 0")
        self.noise_level_max = noise_level_max

    def forward(self, autoencoder: ImageAutoencoder, images: Tensor, *, generator: torch.Generator) -> LossOutput:
        """Mean squared error per pixel value over ``images`` (B, C, H, W) in [0, 1]; ``per_example`` (B,)."""
        z, _ = noised(autoencoder.encode(images), self.noise_level_max, generator)
        per_example = (autoencoder.decode(z) - images).square().flatten(1).mean(1)
        return LossOutput(per_example.mean(), per_example.detach())
