"""Laws of the two objectives on noised latents: reconstruction and commitment."""

import pytest
import torch
from torch import Tensor

from fewstep.autoencoders import TransformerAutoencoder
from fewstep.objectives import HeadTraining, Reconstruction
from fewstep.readouts import CausalTransformer, CommitmentHead, TransformerReadout
from fewstep.types import Latents, TokenBatch
from tests.nn.builders import first, normal, randomised
from tests.objectives.toys import seed

V, D = 7, 3


def autoencoder_and_readout() -> tuple[TransformerAutoencoder, TransformerReadout]:
    autoencoder = randomised(lambda: TransformerAutoencoder(V, D, stride=2, width=8, depth=1, num_heads=2))
    return autoencoder, randomised(lambda: TransformerReadout(V, D, stride=2, width=8, depth=1, num_heads=2))


def head() -> CommitmentHead:
    return CommitmentHead(
        randomised(lambda: CausalTransformer(V, latent_dim=D, stride=2, width=8, depth=1, num_heads=2))
    )


def tokens_of(generator: torch.Generator) -> tuple[TokenBatch, TokenBatch]:
    """A batch with padding, and the same with other ids at the padding."""
    mask = first([8, 5, 2], 8)
    ids = torch.randint(V, (3, 8), generator=generator)
    return TokenBatch(ids, mask), TokenBatch(torch.where(mask, ids, (ids + 1) % V), mask)


def assert_uniform(levels: Tensor, top: float) -> None:
    """Kolmogorov-Smirnov distance to the uniform law on [0, top] within the bound of probability 1e-5."""
    count = len(levels)
    grid = torch.arange(1, count + 1, dtype=torch.float64) / count
    assert (levels.double().sort().values / top - grid).abs().max() < 2.47 / count**0.5 + 1 / count


@pytest.mark.parametrize("training", [False, True])
def test_without_corruption_reconstruction_is_the_plain_loss_of_the_readout(
    training: bool, generator: torch.Generator
) -> None:
    autoencoder, readout = autoencoder_and_readout()
    autoencoder.train(training)
    tokens, _ = tokens_of(generator)
    output = Reconstruction(noise_level_max=0.0).forward(autoencoder, readout, tokens, generator=generator)
    z = autoencoder.encode(tokens.ids, tokens.mask).z
    torch.testing.assert_close(output.per_example, readout.loss(z, tokens.ids, tokens.mask).detach(), rtol=0, atol=1e-9)
    torch.testing.assert_close(output.loss, output.per_example.mean(), rtol=0, atol=1e-12)
    assert output.loss.requires_grad and not output.per_example.requires_grad


@pytest.mark.parametrize("training", [False, True])
def test_padded_ids_never_contribute_to_reconstruction(training: bool, generator: torch.Generator) -> None:
    autoencoder, readout = autoencoder_and_readout()
    autoencoder.train(training)
    objective = Reconstruction(latent_dropout=0.2, token_masking=0.3)
    tokens, other = tokens_of(generator)
    one, two, three = (
        objective.forward(autoencoder, readout, batch, generator=seed(number)).per_example
        for batch, number in ((tokens, 1), (other, 1), (tokens, 2))
    )
    torch.testing.assert_close(two, one, rtol=0, atol=1e-9)
    assert not torch.equal(three, one)


def test_noise_levels_are_uniform_up_to_the_maximum_one_an_example(generator: torch.Generator) -> None:
    z = normal((600, 200, D), generator)
    noise = Reconstruction(noise_level_max=1.5).corrupt(Latents(z, torch.ones(600, 200).bool()), generator) - z
    # Each rms stands for its level to within 3 %: 600 normal numbers an example.
    levels = noise.square().mean((1, 2)).sqrt()
    assert_uniform(levels / 1.03, 1.5)
    halves = noise[:, :100].square().mean((1, 2)).sqrt() / noise[:, 100:].square().mean((1, 2)).sqrt()
    assert ((halves - 1).abs() < 0.3).all(), "one level holds for a whole example"
    assert abs(noise.mean()) < 5 * noise.std() / noise.numel() ** 0.5


def test_dropout_zeroes_whole_positions_at_its_rate(generator: torch.Generator) -> None:
    z = normal((50, 100, D), generator)
    objective = Reconstruction(noise_level_max=1.0, latent_dropout=0.25)
    dropped = objective.corrupt(Latents(z, torch.ones(50, 100).bool()), generator) == 0
    assert torch.equal(dropped.any(-1), dropped.all(-1))
    assert abs(dropped.double().mean() - 0.25) < 5 * (0.25 * 0.75 / 5000) ** 0.5


def test_masking_hides_tokens_from_the_encoder_at_its_rate(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    autoencoder, readout = autoencoder_and_readout()
    seen: list[Tensor | None] = []
    original = autoencoder.encode

    def spy(ids: Tensor, mask: Tensor, hidden: Tensor | None = None) -> Latents:
        seen.append(hidden)
        return original(ids, mask, hidden)

    monkeypatch.setattr(autoencoder, "encode", spy)
    ids = torch.randint(V, (100, 40), generator=generator)
    tokens = TokenBatch(ids, torch.ones_like(ids).bool())
    for share in (0.0, 0.3):
        Reconstruction(token_masking=share).forward(autoencoder, readout, tokens, generator=generator)
    assert seen[0] is None and seen[1] is not None
    assert abs(seen[1].double().mean() - 0.3) < 5 * (0.3 * 0.7 / 4000) ** 0.5


def test_commitment_training_without_noise_is_the_plain_loss_of_the_head(generator: torch.Generator) -> None:
    model, (tokens, other) = head(), tokens_of(generator)
    mask = first([4, 3, 1], 4)
    latents = Latents(normal((3, 4, D), generator) * mask[..., None], mask)
    plain = HeadTraining(noise_level_max=0.0).forward(model, latents, tokens=tokens, generator=generator)
    expected = model.loss(latents.z, tokens.ids, tokens.mask).detach()
    torch.testing.assert_close(plain.per_example, expected, rtol=0, atol=1e-9)
    junk = Latents(torch.where(mask[..., None], latents.z, 50.0), mask)
    one, two, three = (
        HeadTraining().forward(model, z, tokens=batch, generator=seed(number))
        for z, batch, number in ((latents, tokens, 1), (junk, other, 1), (latents, tokens, 2))
    )
    torch.testing.assert_close(two.per_example, one.per_example, rtol=0, atol=1e-9)
    assert not torch.equal(three.loss, one.loss)
    torch.testing.assert_close(one.loss, one.per_example.mean(), rtol=0, atol=1e-12)
    assert one.loss.requires_grad and not one.per_example.requires_grad


def test_the_head_is_told_the_level_that_its_latents_hold(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, mask = head(), torch.ones(500, 100).bool()
    mask[:, 90:] = False
    z = normal((500, 100, D), generator) * mask[..., None]
    tokens = TokenBatch(torch.zeros(500, 200).long(), mask.repeat_interleave(2, 1))
    told: list[tuple[Tensor, Tensor]] = []

    def spy(noised: Tensor, ids: Tensor, token_mask: Tensor, noise_level: Tensor, sees_tokens: Tensor | None) -> Tensor:
        assert sees_tokens is None
        told.append((noised, noise_level))
        return noise_level

    monkeypatch.setattr(model, "loss", spy)
    HeadTraining(noise_level_max=2.0).forward(model, Latents(z, mask), tokens=tokens, generator=generator)
    noised, level = told[0]
    rms = (noised - z)[:, :90].square().mean((1, 2)).sqrt()
    # 270 normal numbers an example: the rms is known to 1 / sqrt(540), 4.3 %.
    assert ((rms / level - 1).abs() < 5 * 0.043).all()
    assert (noised[:, 90:] == 0).all()
    assert len(level) == 500, "each example has its own level"
    assert_uniform(level, 2.0)


def batch_of(count: int, generator: torch.Generator) -> tuple[Latents, TokenBatch]:
    """Full blocks."""
    tokens = TokenBatch(torch.randint(V, (count, 8), generator=generator), torch.ones(count, 8).bool())
    return Latents(normal((count, 4, D), generator), torch.ones(count, 4).bool()), tokens


def test_prefix_dropout_hides_the_earlier_tokens_of_its_share_of_examples_and_changes_no_noise(
    generator: torch.Generator,
) -> None:
    model, (latents, tokens) = head(), batch_of(2000, generator)
    model.network.double()
    plain, dropped = (
        HeadTraining(prefix_dropout=share).forward(model, latents, tokens=tokens, generator=seed(1)).per_example
        for share in (0.0, 0.25)
    )
    hidden = plain != dropped
    assert abs(hidden.double().mean() - 0.25) < 5 * (0.25 * 0.75 / 2000) ** 0.5
    cut_off = CommitmentHead(model.network, sees_tokens=False)
    cut = HeadTraining().forward(cut_off, latents, tokens=tokens, generator=seed(1))
    torch.testing.assert_close(dropped[hidden], cut.per_example[hidden], rtol=0, atol=1e-9)


def test_the_generated_share_of_examples_reads_what_the_flow_made_of_them(generator: torch.Generator) -> None:
    model, (latents, tokens) = head(), batch_of(2000, generator)
    seen: list[Latents] = []

    def regenerate(given: Latents, _: torch.Generator) -> Tensor:
        seen.append(given)
        return given.z + 1

    training = HeadTraining(noise_level_max=0.0, generated_share=0.25)
    mixed = training.forward(model, latents, tokens=tokens, generator=seed(1), regenerate=regenerate).per_example
    assert seen == [latents]
    own, made = (model.loss(z, tokens.ids, tokens.mask).detach() for z in (latents.z, latents.z + 1))
    replaced = (mixed - made).abs() < 1e-9
    assert torch.equal(replaced, (mixed - own).abs() > 1e-9), "each example is one or the other"
    assert abs(replaced.double().mean() - 0.25) < 5 * (0.25 * 0.75 / 2000) ** 0.5
    with pytest.raises(ValueError, match=r"generated_share is 0.25, but there is no flow"):
        training.forward(model, latents, tokens=tokens, generator=seed(1))
