"""Training steps of each stage as a run makes them: loss, backward, clipping, optimizer, schedule and weight average.

Random tokens stand in for a corpus, for the time of a step does not depend on which they are; a frozen autoencoder
encodes them, as in a run without a latent cache.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fewstep.autoencoders import TransformerAutoencoder
from fewstep.denoisers import FlowModel, RegressionDenoiser
from fewstep.objectives import FlowMatching, HeadTraining, Reconstruction
from fewstep.paths import linear_path
from fewstep.readouts import CausalTransformer, CommitmentHead, TransformerReadout
from fewstep.schedules import LogitNormalTime
from fewstep.training import OptimizerSettings, callbacks
from fewstep.types import TokenBatch

STAGES = ("autoencoder", "flow", "head")
PRECISIONS = ("fp32", "bf16")
Loss = Callable[[TokenBatch, torch.Generator], Tensor]


@dataclass(frozen=True)
class Size:
    """Width and depth of the trained networks, tokens a block, blocks a batch, vocabulary."""

    width: int
    depth: int
    num_heads: int
    length: int
    batch: int
    vocab_size: int = 2048
    latent_dim: int = 8


SIZES = {
    "small": Size(192, 5, 3, length=32, batch=32),
    "middle": Size(256, 4, 4, length=64, batch=32),
    "large": Size(512, 2, 8, length=128, batch=32),
}
"""``small`` is about what the shipped settings train; ``large`` is the size of the aim in docs/speed.md."""


@contextmanager
def seeded_start(seed: int) -> Iterator[None]:
    """Modules built inside start from weights that ``seed`` decides; the process's own stream is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def autoencoder_of(size: Size, depth: int) -> TransformerAutoencoder:
    """The encoder at a size."""
    return TransformerAutoencoder(
        size.vocab_size, size.latent_dim, width=size.width, depth=depth, num_heads=size.num_heads
    )


def stage_loss(stage: str, size: Size) -> tuple[nn.Module, Loss]:
    """The module that a stage trains, and its loss. Encoder and readout share the depth of the other stages."""
    if stage == "autoencoder":
        half = max(1, size.depth // 2)
        encoder = autoencoder_of(size, half)
        readout = TransformerReadout(
            size.vocab_size, size.latent_dim, width=size.width, depth=size.depth - half, num_heads=size.num_heads
        )
        reconstruction = Reconstruction(noise_level_max=1.0, token_masking=0.15)
        module = nn.ModuleList([encoder, readout])
        return module, lambda tokens, g: reconstruction.forward(encoder, readout, tokens, generator=g).loss
    frozen = autoencoder_of(size, 1).eval().requires_grad_(False)
    if stage == "flow":
        network = RegressionDenoiser(
            size.latent_dim, size.length, width=size.width, depth=size.depth, num_heads=size.num_heads
        )
        flow, matching = FlowModel(network, linear_path(), "x1"), FlowMatching(LogitNormalTime(mean=0.0, std=1.0))

        def flow_loss(tokens: TokenBatch, generator: torch.Generator) -> Tensor:
            with torch.no_grad():
                latents = frozen.encode(tokens.ids, tokens.mask)
            return matching.forward(flow, latents, tokens=tokens, readout=None, generator=generator).loss

        return network, flow_loss
    causal = CausalTransformer(
        size.vocab_size, latent_dim=size.latent_dim, width=size.width, depth=size.depth, num_heads=size.num_heads
    )
    head, training = CommitmentHead(causal), HeadTraining(prefix_dropout=0.1)

    def commitment_loss(tokens: TokenBatch, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            latents = frozen.encode(tokens.ids, tokens.mask)
        return training.forward(head, latents, tokens=tokens, generator=generator).loss

    return causal, commitment_loss


class TrainingStep:
    """One step of a stage; calling it makes the step and returns its loss."""

    def __init__(self, stage: str, size: Size, precision: str, seed: int = 0) -> None:
        with seeded_start(seed):
            self.module, self.loss = stage_loss(stage, size)
        self.size = size
        self.precision = precision
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer, self.schedule = OptimizerSettings().build(self.module.parameters(), 1000)
        # The tree's own average of the weights; one that has none takes Lightning's.
        average = getattr(callbacks, "WeightAverage", EMAWeightAveraging)(decay=0.99)
        self.average = AveragedModel(self.module, use_buffers=True, **average._kwargs)
        ids = torch.randint(size.vocab_size, (size.batch, size.length), generator=self.generator)
        self.tokens = TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))

    def __call__(self) -> Tensor:
        """Make one step; the loss (scalar), detached."""
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=False):
            loss = self.loss(self.tokens, self.generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.average.update_parameters(self.module)
        return loss.detach()

    def state_bytes(self) -> int:
        """Bytes of the trained weights, their gradients, the optimizer's moments and the average; after a step."""
        weights = list(self.module.parameters())
        held = [*weights, *(weight.grad for weight in weights if weight.grad is not None)]
        held += [value for state in self.optimizer.state.values() for value in state.values()]
        held += [*self.average.module.parameters()]
        return sum(tensor.nbytes for tensor in held)
