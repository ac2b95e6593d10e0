"""The head's stage: latents that the frozen flow makes, and the flags of its objective."""

from pathlib import Path

import pytest
import torch

from fewstep.errors import UserError
from fewstep.model import Identity
from fewstep.pipeline import TextGenerator
from fewstep.shapes import randn
from fewstep.training import HeadModule
from fewstep.training.command import main
from fewstep.training.stages import check_generation
from fewstep.types import Latents
from tests.bundles import tiny_bundle
from tests.runs import Workshop, logged


class Regenerating(HeadModule):
    """Only the part that makes latents, on the tiny bundle."""

    def __init__(self, num_steps: int) -> None:
        torch.nn.Module.__init__(self)
        self.generated_steps = num_steps

    base = tiny_bundle()  # type: ignore[assignment]


def test_generated_latents_go_on_from_noised_data_at_an_inner_time_of_the_grid(generator: torch.Generator) -> None:
    bundle = tiny_bundle()
    shape = (3, *bundle.latent_shape())
    latents = Latents(torch.randn(shape, generator=generator), torch.ones(shape[:2], dtype=torch.bool))
    flow, times = bundle.flow(), bundle.identity.default_grid().times(4)
    seen: set[int] = set()
    for seed in range(40):
        made = Regenerating(4).regenerate(latents, torch.Generator().manual_seed(seed))
        assert not made.requires_grad
        source = torch.Generator().manual_seed(seed)
        step = 1 + int(3 * torch.rand(1, generator=source))
        x = flow.path.sample(latents.z, randn(shape, latents.z, source), times[step].float().expand(3))
        with torch.no_grad():
            self_cond = None
            for k in range(step, 4):
                t, s = (torch.full((3,), float(time)) for time in times[k : k + 2])
                self_cond = flow.denoise(x, t, self_cond=self_cond)
                x = flow.path.sample(self_cond, flow.path.eps_from_x1(x, self_cond, t), s)
        torch.testing.assert_close(made, x, rtol=1e-4, atol=1e-4)
        seen.add(step)
    assert seen == {1, 2, 3}, "every inner time comes, and never pure noise or the data themselves"


def test_a_sampler_that_the_flow_does_not_allow_is_refused() -> None:
    with pytest.raises(UserError, match="generated_steps is 1: expected at least 2"):
        check_generation(Identity(8, "x"), 1)
    with pytest.raises(UserError, match="does not fit this model"):
        check_generation(Identity(8, "x", trained_nfe=2), 4)
    check_generation(Identity(8, "x", trained_nfe=4), 4)
    check_generation(Identity(8, "x", estimate="endpoint"), 4)


def test_with_all_flags_on_the_head_trains_from_yaml_and_says_when_there_is_no_flow(
    workshop: Workshop, tmp_path: Path
) -> None:
    flags = ["--model.objective.prefix_dropout=0.5", "--model.objective.generated_share=0.5"]
    run = f"--run_dir={tmp_path / 'head'}"
    with pytest.raises(UserError, match=r"no denoiser .*train the stage flow first"):
        main(workshop.arguments("head", run, *flags))
    assert main(workshop.arguments("flow", f"--run_dir={tmp_path / 'flow'}", steps=2)) == 0
    base = f"--model.autoencoder={tmp_path / 'flow' / 'model'}"
    assert main(workshop.arguments("head", run, base, *flags, "--model.generated_steps=2", steps=3)) == 0
    assert len(logged(tmp_path / "head")["train/loss"]) == 3
    made = TextGenerator.from_pretrained(tmp_path / "head" / "model").generate(2, readout="head_off")
    assert len(made.texts) == 2
