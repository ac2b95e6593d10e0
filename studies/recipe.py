"""Which latents and which objective write text at a small budget: equal CPU time for every setting.

    python studies/recipe.py --minutes 5                             # every setting, in runs/recipe; resumes
    python studies/recipe.py --minutes 5 --only base,masked
    python studies/recipe.py --minutes 0.1 --samples 4               # a trial run

A setting trains its autoencoder and its flow for ``minutes`` of CPU time on one thread together. Its samples at K = 4
and 32, through the parallel readout, deterministic and with full re-injection, are scored by ``fewstep evaluate`` under
a language model of the same tokens, trained once.
"""

import argparse
import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from fewstep.autoencoders import TransformerAutoencoder
from fewstep.cli.main import main as fewstep
from fewstep.data import CorpusSettings, StepBatchSampler, prepare_corpus, tokenizer_fingerprint
from fewstep.denoisers import FlowModel, RegressionDenoiser
from fewstep.model import Identity, SavedModel
from fewstep.objectives import FlowMatching, Reconstruction
from fewstep.paths import PATHS
from fewstep.readouts import CausalTransformer, LanguageModel, TransformerReadout
from fewstep.schedules import LogitNormalTime, UniformTime
from fewstep.types import TokenBatch


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One setting; the defaults are the base that the others vary."""

    latent_dim: int = 8
    noise_level_max: float = 1.0
    token_masking: float = 0.0
    latent_dropout: float = 0.0
    cross_entropy_weight: float = 0.0
    prediction: str = "x1"
    path: str = "linear"
    time_mean: float | None = None
    self_conditioning: float = 0.0
    local_reach: int = 2

    @property
    def autoencoder_key(self) -> str:
        """Settings that agree in these share an autoencoder."""
        deciding = (self.latent_dim, self.noise_level_max, self.token_masking, self.latent_dropout)
        return hashlib.sha256(repr(deciding).encode()).hexdigest()[:12]


CHANGES: dict[str, dict[str, object]] = {
    "base": {},
    "logit_normal": {"time_mean": 0.0},
    "cross_entropy": {"cross_entropy_weight": 0.1},
    "cross_entropy_logit_normal": {"cross_entropy_weight": 0.1, "time_mean": 0.0},
    "cross_entropy_0.03_logit_normal": {"cross_entropy_weight": 0.03, "time_mean": 0.0},
    "self_conditioning": {"self_conditioning": 0.5},
    "velocity": {"prediction": "velocity"},
    "variance_preserving": {"path": "variance_preserving"},
    "masked": {"token_masking": 0.15},
    "no_local_mixing": {"local_reach": 0},
    "latent_dropout": {"latent_dropout": 0.1},
    "noise_0.5": {"noise_level_max": 0.5},
    "noise_1.5": {"noise_level_max": 1.5},
    "dim_6": {"latent_dim": 6},
    "dim_16": {"latent_dim": 16},
}
SETTINGS = {name: dataclasses.replace(Recipe(), **change) for name, change in CHANGES.items()}  # type: ignore[arg-type]
SCORER_SHARE, AUTOENCODER_SHARE = 0.8, 0.5
"""CPU time of the scorer and of an autoencoder, as a share of --minutes."""

Loss = Callable[[TokenBatch, torch.Generator], Tensor]


def train(module: nn.Module, loss_of: Loss, batches: Iterator[TokenBatch], minutes: float, rate: float) -> int:
    """AdamW with warm-up and cosine over the CPU time; leaves the averaged weights. Returns the number of steps."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
    average = torch.optim.swa_utils.AveragedModel(
        module, avg_fn=lambda old, new, n: old + (new - old) * max(0.005, 1 / (n + 2))
    )
    step, start = 0, time.process_time()
    module.train()
    while (used := (time.process_time() - start) / 60 / minutes) < 1:
        cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * used)).item())
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 100) * (0.05 + 0.95 * cosine)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(next(batches), torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(module)
        step += 1
        if step % 200 == 0:
            print(f"  step {step}, {used:.0%}, loss {loss.item():.3f}", flush=True)
    module.load_state_dict(average.module.state_dict())
    module.eval()
    return step


class Study:
    """Data, language model and autoencoders that the settings share."""

    def __init__(self, folder: Path, minutes: float) -> None:
        self.folder, self.minutes = folder, minutes
        self.corpus = prepare_corpus(CorpusSettings())
        self.vocab_size = self.corpus.report.vocabulary
        self.blocks = torch.from_numpy(self.corpus.train[:]["input_ids"].astype("int64"))
        self.scorer = CausalTransformer(self.vocab_size, width=192, depth=4, num_heads=3)
        model = LanguageModel(self.scorer)

        def loss(tokens: TokenBatch, generator: torch.Generator) -> Tensor:
            return model.loss(tokens.ids, tokens.mask).mean()

        self.trained(self.scorer, "scorer", loss, SCORER_SHARE, 2e-3)

    def batches(self, batch_size: int = 32) -> Iterator[TokenBatch]:
        """Endless batches of the train split."""
        for rows in StepBatchSampler(len(self.blocks), batch_size, 10**9, seed=0):
            ids = self.blocks[rows]
            yield TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))

    def trained(self, module: nn.Module, name: str, loss: Loss, share: float, rate: float) -> None:
        """Train ``module`` for a share of the budget, or read the weights that an earlier run left."""
        file = self.folder / f"{name}-{self.minutes:g}.pt"
        if file.exists():
            module.load_state_dict(torch.load(file))
            module.eval()
            return
        print(name, flush=True)
        train(module, loss, self.batches(), share * self.minutes, rate)
        torch.save(module.state_dict(), file)

    def autoencoder(self, recipe: Recipe) -> tuple[TransformerAutoencoder, TransformerReadout]:
        """Autoencoder and readout of a recipe."""
        encoder = TransformerAutoencoder(self.vocab_size, recipe.latent_dim, depth=2, width=128)
        readout = TransformerReadout(self.vocab_size, recipe.latent_dim, depth=2, width=128)
        objective = Reconstruction(
            noise_level_max=recipe.noise_level_max,
            token_masking=recipe.token_masking,
            latent_dropout=recipe.latent_dropout,
        )

        def loss(tokens: TokenBatch, generator: torch.Generator) -> Tensor:
            return objective.forward(encoder, readout, tokens, generator=generator).loss

        both = nn.ModuleList([encoder, readout])
        self.trained(both, f"autoencoder-{recipe.autoencoder_key}", loss, AUTOENCODER_SHARE, 3e-3)
        return encoder, readout

    def flow(self, recipe: Recipe, encoder: TransformerAutoencoder, readout: TransformerReadout) -> FlowModel:
        """The denoiser of a recipe, trained for the rest of the budget."""
        network = RegressionDenoiser(
            recipe.latent_dim,
            self.blocks.shape[1],
            width=192,
            depth=5,
            num_heads=3,
            local_reach=recipe.local_reach,
            self_conditioning=recipe.self_conditioning > 0,
        )
        flow = FlowModel(network, PATHS[recipe.path](), recipe.prediction)  # type: ignore[arg-type]
        objective = FlowMatching(
            UniformTime() if recipe.time_mean is None else LogitNormalTime(recipe.time_mean, 1.0),
            cross_entropy_weight=recipe.cross_entropy_weight,
            self_conditioning_probability=recipe.self_conditioning,
        )
        readout.requires_grad_(False)

        def loss(tokens: TokenBatch, generator: torch.Generator) -> Tensor:
            with torch.no_grad():
                latents = encoder.encode(tokens.ids, tokens.mask)
            return objective.forward(flow, latents, tokens=tokens, readout=readout, generator=generator).loss

        print("flow", flush=True)
        steps = train(network, loss, self.batches(), (1 - AUTOENCODER_SHARE) * self.minutes, 2e-3)
        print(f"  {steps} steps", flush=True)
        return flow

    def model(self, recipe: Recipe) -> SavedModel:
        """All parts, trained."""
        torch.manual_seed(0)
        encoder, readout = self.autoencoder(recipe)
        torch.manual_seed(1)  # the same start whether the autoencoder was trained here or read
        flow = self.flow(recipe, encoder, readout)
        identity = Identity(
            block_size=self.blocks.shape[1],
            tokenizer_fingerprint=tokenizer_fingerprint(self.corpus.tokenizer),
            path=recipe.path,
            prediction=recipe.prediction,
            grid_mean=recipe.time_mean,
            grid_std=None if recipe.time_mean is None else 1.0,
        )
        parts = (encoder, readout, flow.network)
        return SavedModel(self.corpus.tokenizer, identity, *parts, language_model=self.scorer)


def main() -> None:
    """Train and score the settings that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="CPU minutes of autoencoder and flow")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("runs/recipe"))
    parser.add_argument("--only", default=",".join(SETTINGS), help="names of settings, with commas between")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    study = None
    for name in args.only.split(","):
        folder = args.out / f"{name}-{args.minutes:g}"
        if not (folder / "model" / "config.json").is_file():
            print(f"== {name}: {SETTINGS[name]}", flush=True)
            study = study or Study(args.out, args.minutes)
            study.model(SETTINGS[name]).save_pretrained(folder / "model", overwrite=True)
        sweep = ("--steps", "4,32", "--reinjection", "0,1", "--readout", "parallel", "--seeds", "1")
        if fewstep(["evaluate", str(folder / "model"), *sweep, "--samples", str(args.samples)]):
            raise SystemExit(f"{name} could not be evaluated")
        if fewstep(
            ["diagnose", str(folder / "model"), "--only", "noise_robustness", "--effort", "full", "--overwrite"]
        ):
            raise SystemExit(f"{name} could not be diagnosed")


if __name__ == "__main__":
    main()
