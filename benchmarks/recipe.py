"""Which recipe makes text at a small budget: one row a setting, equal CPU time, appended to a file.

    python benchmarks/recipe.py --minutes 5 --out runs/recipe/rows.jsonl        # all settings, resumable
    python benchmarks/recipe.py --minutes 5 --out runs/recipe/rows.jsonl --only base,code_16

Each setting trains its autoencoder and its flow for ``minutes`` of CPU time on one thread together, samples 128 blocks
at K = 4 and 32
through the parallel readout, deterministic and with full re-injection, and scores them under a language model of the
same tokens (trained once a vocabulary and block, kept beside the rows). A row holds perplexity, entropy, token accuracy
and the yardsticks. With ``--busy`` the time is counted in steps of a reference that runs beside: on a machine that does
other things at the same time CPU seconds are no measure of work.
"""

import argparse
import dataclasses
import hashlib
import json
from pathlib import Path

import torch
from recipe_budget import Budget, NewBudget, ReferenceBudget
from recipe_settings import AUTOENCODER_FIELDS, SETTINGS, Recipe
from torch import nn

from fewstep.autoencoders import TransformerAutoencoder
from fewstep.data import CorpusSettings, StepBatchSampler, prepare_corpus, tokenizer_fingerprint
from fewstep.denoisers import CategoricalDenoiser, FlowModel, RegressionDenoiser
from fewstep.diagnostics.accuracy import noise_robustness
from fewstep.evaluation.baselines import held_out_blocks, token_counts
from fewstep.evaluation.generation import evaluate_generation
from fewstep.model import Identity, SavedModel
from fewstep.objectives import FlowMatching, Reconstruction
from fewstep.paths import PATHS
from fewstep.pipeline import TextGenerator
from fewstep.readouts import CausalTransformer, LanguageModel, LinearReadout, TransformerReadout, token_nats
from fewstep.schedules import LogitNormalTime, UniformTime
from fewstep.types import TokenBatch

SCORER_MINUTES = 4.0
"""CPU minutes of the language model that scores; the same for all settings of a vocabulary and block size."""


def train(module: nn.Module, loss_of, batches, budget: Budget, learning_rate: float, name: str) -> int:
    """AdamW with warm-up and cosine over the budget; the averaged weights are left in the module. Returns the steps."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    average = torch.optim.swa_utils.AveragedModel(
        module, avg_fn=lambda old, new, n: old + (new - old) * max(0.005, 1 / (n + 2))
    )
    step, losses = 0, []
    module.train()
    for batch in batches:
        used = budget.used
        if used >= 1:
            break
        cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * used)).item())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, (step + 1) / 100) * (0.05 + 0.95 * cosine)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(batch, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(module)
        losses.append(loss.item())
        step += 1
        budget.tick()
        if step % 200 == 0:
            print(f"  {name} step {step}, {used:.0%}, loss {sum(losses[-200:]) / 200:.3f}", flush=True)
    module.load_state_dict(average.module.state_dict())
    module.eval()
    return step


class Lab:
    """Data and language model of one vocabulary and block size."""

    def __init__(self, recipe: Recipe, folder: Path, budget: NewBudget) -> None:
        self.recipe = recipe
        self.budget = budget
        self.corpus = prepare_corpus(CorpusSettings(vocab_size=recipe.vocab_size, block_size=recipe.block_size))
        self.vocab_size = self.corpus.report.vocabulary
        self.language_model = CausalTransformer(self.vocab_size, width=192, depth=4, num_heads=3)
        file = folder / f"scorer_{recipe.vocab_size}_{recipe.block_size}.pt"
        if file.exists():
            self.language_model.load_state_dict(torch.load(file))
        else:
            model = LanguageModel(self.language_model)
            loss = lambda tokens, generator: model.loss(tokens.ids, tokens.mask).mean()  # noqa: E731
            train(
                self.language_model,
                loss,
                self.batches(64 * 32 // recipe.block_size),
                budget(60 * SCORER_MINUTES),
                2e-3,
                "scorer",
            )
            torch.save(self.language_model.state_dict(), file)
        self.language_model.eval()

    def batches(self, batch_size: int):
        """Endless batches of the train split."""
        blocks = torch.from_numpy(self.corpus.train[:]["input_ids"].astype("int64"))
        for rows in StepBatchSampler(len(blocks), batch_size, 10**9, seed=0):
            ids = blocks[rows]
            yield TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))


def run(name: str, recipe: Recipe, minutes: float, folder: Path, budget: NewBudget) -> dict[str, object]:
    """Train and score one setting."""
    torch.manual_seed(0)
    lab = Lab(recipe, folder, budget)
    autoencoder, readout, ae_steps = train_autoencoder(recipe, lab, folder)
    held_out, _ = held_out_blocks(lab.corpus.validation, 128)
    accuracy = accuracy_under_noise(autoencoder, readout, held_out)
    torch.manual_seed(1)  # the same start whether the autoencoder was trained here or found
    flow, steps = train_flow(recipe, lab, autoencoder, readout, minutes)
    identity = Identity(
        block_size=recipe.block_size,
        tokenizer_fingerprint=tokenizer_fingerprint(lab.corpus.tokenizer),
        path=recipe.path,
        prediction=recipe.prediction,
        grid_mean=recipe.time_mean,
        grid_std=recipe.time_std if recipe.time_mean is not None else None,
    )
    bundle = SavedModel(
        lab.corpus.tokenizer, identity, autoencoder, readout, flow.network, language_model=lab.language_model
    ).to("cpu")
    bundle.save_pretrained(folder / f"{name}-{minutes:g}", overwrite=True)
    counts = token_counts(lab.corpus.train, lab.vocab_size)
    table = evaluate_generation(
        TextGenerator(bundle),
        held_out,
        counts,
        steps=(4, 32),
        readouts=("parallel",),
        reinjections=(0.0, 1.0),
        num_resamples=200,
    )
    print(table.to_text(), flush=True)
    for row in table.rows:
        print(row.name, row.num_steps, row.examples[:2], flush=True)
    rows = json.loads(table.to_json())["rows"]
    return {
        "name": name,
        "minutes": minutes,
        "budget": budget.__name__,  # type: ignore[attr-defined]
        "recipe": dataclasses.asdict(recipe),
        "autoencoder_steps": ae_steps,
        "flow_steps": steps,
        "accuracy": accuracy,
        "rows": rows,
    }


def train_autoencoder(
    recipe: Recipe, lab: Lab, folder: Path
) -> tuple[TransformerAutoencoder, LinearReadout | TransformerReadout, int]:
    """Autoencoder and readout of a recipe; settings that differ in the flow only share one, kept on disk."""
    width = recipe.autoencoder_width
    autoencoder = TransformerAutoencoder(
        lab.vocab_size, recipe.latent_dim, stride=recipe.stride, depth=recipe.encoder_depth, width=width
    )
    readout: LinearReadout | TransformerReadout
    if recipe.readout_depth:
        readout = TransformerReadout(
            lab.vocab_size, recipe.latent_dim, depth=recipe.readout_depth, width=width, stride=recipe.stride
        )
    else:
        readout = LinearReadout(lab.vocab_size, recipe.latent_dim, stride=recipe.stride)
    both = nn.ModuleList([autoencoder, readout])
    key = hashlib.sha256(repr([getattr(recipe, name) for name in AUTOENCODER_FIELDS]).encode()).hexdigest()[:12]
    file = folder / f"autoencoder_{key}.pt"
    if file.exists():
        saved = torch.load(file)
        both.load_state_dict(saved["weights"])
        both.eval()
        return autoencoder, readout, saved["steps"]
    reconstruction = Reconstruction(
        noise_level_max=recipe.noise_level_max,
        token_masking=recipe.token_masking,
        latent_dropout=recipe.latent_dropout,
    )
    loss = lambda tokens, g: reconstruction.forward(autoencoder, readout, tokens, generator=g).loss  # noqa: E731
    rate = 1e-2 if recipe.encoder_depth == 0 else 3e-3
    budget = lab.budget(60 * recipe.autoencoder_minutes)
    steps = train(both, loss, lab.batches(32), budget, rate, "autoencoder")
    torch.save({"weights": both.state_dict(), "steps": steps}, file)
    return autoencoder, readout, steps


@torch.no_grad()
def accuracy_under_noise(
    autoencoder: TransformerAutoencoder, readout: LinearReadout | TransformerReadout, tokens: TokenBatch
) -> dict[str, float | None]:
    """Token accuracy of the readout at each level of isotropic noise."""
    latents, generator = autoencoder.encode(tokens.ids, tokens.mask), torch.Generator().manual_seed(0)
    decode = lambda z: readout(z, latents.mask)  # noqa: E731
    result = noise_robustness(decode, latents.z, tokens.ids, tokens.mask, None, generator=generator)
    line = result.curves["isotropic"]
    return {str(level): accuracy for level, accuracy in zip(line.x, line.y, strict=True)}


def train_flow(recipe: Recipe, lab: Lab, autoencoder, readout, minutes: float) -> tuple[FlowModel, int]:
    """The denoiser of a recipe, trained for its budget."""
    positions = recipe.block_size // recipe.stride
    body = {"width": recipe.width, "depth": recipe.depth, "num_heads": recipe.num_heads}
    body["local_reach"] = recipe.local_reach
    conditioned = recipe.self_conditioning > 0
    network: CategoricalDenoiser | RegressionDenoiser
    if recipe.categorical:
        network = CategoricalDenoiser(
            recipe.latent_dim, positions, lab.vocab_size, recipe.path, self_conditioning=conditioned, **body
        )
        counts = token_counts(lab.corpus.train, lab.vocab_size)
        network.set_codebook(autoencoder.codebook(), ((counts + 1) / (counts + 1).sum()).log().float())
    else:
        network = RegressionDenoiser(recipe.latent_dim, positions, self_conditioning=conditioned, **body)
    flow = FlowModel(network, PATHS[recipe.path](), recipe.prediction)  # type: ignore[arg-type]
    sampler = UniformTime() if recipe.time_mean is None else LogitNormalTime(recipe.time_mean, recipe.time_std)
    objective = FlowMatching(
        sampler,
        regression_weight=recipe.regression_weight,
        cross_entropy_weight=recipe.cross_entropy_weight,
        self_conditioning_probability=recipe.self_conditioning,
    )
    readout.requires_grad_(False)

    def loss(tokens: TokenBatch, generator: torch.Generator) -> torch.Tensor:
        with torch.no_grad():
            latents = autoencoder.encode(tokens.ids, tokens.mask)
        return objective.forward(flow, latents, tokens=tokens, readout=readout, generator=generator).loss

    steps = train(
        network,
        loss,
        lab.batches(recipe.batch_size),
        lab.budget(60 * (minutes - recipe.autoencoder_minutes)),
        recipe.learning_rate,
        "flow",
    )
    if recipe.categorical:
        print("  nats at t", held_out_nats(lab, autoencoder, network, flow), flush=True)
    return flow, steps


@torch.no_grad()
def held_out_nats(lab: Lab, autoencoder, network, flow: FlowModel) -> dict[float, tuple[float, float]]:
    """Nats per held-out token at fixed times: of the denoiser, and of the evidence at the position alone."""
    held_out, _ = held_out_blocks(lab.corpus.validation, 256)
    z, generator, result = autoencoder.encode(held_out.ids, held_out.mask).z, torch.Generator().manual_seed(0), {}
    for time_value in (0.2, 0.3, 0.4, 0.5, 0.6):
        t = torch.full((len(z),), time_value)
        x_t = flow.path.sample(z, torch.randn(z.shape, generator=generator), t)
        alone = network.own_logits(x_t, t)
        nats = [token_nats(logits, held_out.ids).mean().item() for logits in (flow.predict(x_t, t).token_logits, alone)]
        result[time_value] = (round(nats[0], 3), round(nats[1], 3))
    return result


def main() -> None:
    """Run the settings that have no row yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="CPU minutes of autoencoder and flow")
    parser.add_argument("--out", type=Path, default=Path("runs/recipe/rows.jsonl"))
    parser.add_argument("--only", default="", help="names of settings, by commas; all where empty")
    parser.add_argument("--busy", action="store_true", help="count work by a reference, not by CPU time")
    arguments = parser.parse_args()
    budget = ReferenceBudget if arguments.busy else Budget
    torch.set_num_threads(1)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    done = set()
    if arguments.out.exists():
        rows = [json.loads(line) for line in arguments.out.read_text().splitlines()]
        ours = (arguments.minutes, budget.__name__)
        done = {row["name"] for row in rows if (row["minutes"], row.get("budget", Budget.__name__)) == ours}
    for name in arguments.only.split(",") if arguments.only else SETTINGS:
        if name in done:
            continue
        print(f"{name}: {SETTINGS[name]}", flush=True)
        row = run(name, SETTINGS[name], arguments.minutes, arguments.out.parent, budget)
        with arguments.out.open("a") as stream:
            stream.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
