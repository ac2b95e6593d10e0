"""Prompts, gaps and longer texts: what is known stays, says nothing of the rest, and is all that a text depends on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewstep.cli.main import main as command
from fewstep.denoisers import ConditionalFlow, FlowModel, Guided, Known, RegressionDenoiser
from fewstep.errors import UserError
from fewstep.model import SavedModel
from fewstep.paths import linear_path
from fewstep.pipeline import TextGenerator
from fewstep.prompts import GAP
from fewstep.readouts import LanguageModel, TokenDraw, decode_cached
from fewstep.training.command import main
from fewstep.types import KnownTokens
from fewstep.writing import known_latents
from tests.bundles import BLOCK_SIZE, LATENT_DIM, STRIDE, randomise, tiny_bundle, with_identity
from tests.nn.builders import randomised
from tests.runs import Workshop

PROMPTS = ["the old", "nobody knew how", "far"]


def conditional_bundle() -> SavedModel:
    """A tiny model whose flow reads known positions."""
    bundle = tiny_bundle()
    denoiser = RegressionDenoiser(LATENT_DIM, BLOCK_SIZE // STRIDE, width=16, depth=1, num_heads=2, reads_known=True)
    randomise(denoiser, torch.Generator().manual_seed(1))
    parts = {**bundle.parts(), "denoiser": denoiser.eval()}
    return SavedModel(bundle.tokenizer, replace(bundle.identity, known_dropped=0.1), **parts)


def tokens_of(model: SavedModel, text: str) -> list[int]:
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("readout", ["parallel", "head"])
@pytest.mark.parametrize("model", [tiny_bundle(), conditional_bundle()], ids=["replacement", "reads_known"])
@pytest.mark.parametrize("commit_tokens", [None, 1, 3])
def test_a_text_begins_with_its_prompt_and_depends_on_it_and_its_seed_alone(
    readout: str, model: SavedModel, commit_tokens: int | None
) -> None:
    generator = TextGenerator(model)
    settings = {"readout": readout, "reinjection": 0.5, "max_new_tokens": 11, "commit_tokens": commit_tokens}
    together = generator.generate(3, 2, 5, prompt=PROMPTS, **settings)
    for number, prompt in enumerate(PROMPTS):
        given = tokens_of(model, prompt)
        length = len(given) + 11
        row = together.ids[number, :length].tolist()
        assert row[: len(given)] == given and together.mask[number].sum() == length
        assert together.given[number].tolist() == [place < len(given) for place in range(together.ids.shape[1])]
        alone = generator.generate(1, 2, 5, prompt=prompt, first_sample=number, **settings)
        assert alone.ids[0, :length].tolist() == row
    if commit_tokens == 1:
        assert together.nfe == 2 * 11


def test_other_tokens_say_nothing_to_the_latents_of_known_ones() -> None:
    model = conditional_bundle()
    mask = torch.zeros(2, BLOCK_SIZE, dtype=torch.bool)
    mask[0, :4] = mask[1, 3:] = True
    ids = torch.randint(len(model.tokenizer), (2, BLOCK_SIZE), generator=torch.Generator().manual_seed(0))
    known, other = (
        known_latents(model, KnownTokens(each, mask), torch.ones_like(mask))
        for each in (ids, torch.where(mask, ids, (ids + 7) % len(model.tokenizer)))
    )
    assert known.mask.tolist() == [[True, True, False, False], [False, False, True, True]]
    assert torch.equal(known.z[known.mask], other.z[other.mask])


@pytest.mark.parametrize("readout", ["parallel", "head"])
@pytest.mark.parametrize("blocks", ["packed", "documents"])
def test_gaps_are_filled_in_and_all_around_them_stays(readout: str, blocks: str) -> None:
    model = with_identity(conditional_bundle(), blocks=blocks)
    end = model.tokenizer.eos_token_id
    with torch.no_grad():  # a model that would end every text at once
        model.readout.outputs.bias[end] = 1e4
        model.head.outputs.weight[end] = 0.0
    template = f"the {GAP} sailed"
    made = TextGenerator(model).generate(4, 2, readout=readout, infill=template, gap_tokens=(1, 3))
    before, after = tokens_of(model, "the"), tokens_of(model, " sailed")
    for ids, mask, given in zip(made.ids.tolist(), made.mask.tolist(), made.given.tolist(), strict=True):
        text = [token for token, is_written in zip(ids, mask, strict=True) if is_written]
        body = text[:-1] if blocks == "documents" else text
        gap = body[len(before) : -len(after)]
        assert body[: len(before)] == before and body[-len(after) :] == after and 1 <= len(gap) <= 3
        assert blocks == "packed" or (text[-1] == end and end not in gap)
        assert sum(given) == len(text) - len(gap)


def test_the_head_draws_after_known_tokens_by_the_law_of_its_network() -> None:
    network = tiny_bundle().language_model
    ids = torch.randint(network.vocab_size, (3, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True] * 3 + [False] * 3, [False] * 6, [False, True, False, True, False, False]])
    u = torch.rand(3, 6, generator=torch.Generator().manual_seed(1))
    drawn = decode_cached(network, u, None, TokenDraw(known=KnownTokens(ids, mask)))
    assert torch.equal(drawn.ids[mask], ids[mask]) and not drawn.log_probs[mask].any()
    nats = LanguageModel(network).token_nats(drawn.ids)
    torch.testing.assert_close(-drawn.log_probs[~mask], nats[~mask], rtol=1e-4, atol=1e-4)


def test_guidance_is_linear_between_the_free_estimate_and_the_given_one() -> None:
    built = randomised(lambda: RegressionDenoiser(2, 3, width=8, depth=1, num_heads=2, reads_known=True)).float()
    flow = FlowModel(built, linear_path(), "x1")
    held = torch.tensor([[True, False, False]])
    given = ConditionalFlow(flow, Known(torch.ones(1, 3, 2), held))
    x_t, t = torch.randn(1, 3, 2, generator=torch.Generator().manual_seed(0)) * ~held[..., None], torch.tensor([0.4])
    free, full = flow.denoise(x_t, t, mask=~held), given.denoise(x_t, t, mask=~held)
    assert not torch.allclose(free[:, 1:], full[:, 1:])
    for scale in (0.0, 1.0, 2.5):
        guided = Guided(given, scale).denoise(x_t, t, mask=~held)
        torch.testing.assert_close(guided, free + scale * (full - free))
    model = TextGenerator(conditional_bundle())
    plain, doubled = (model.generate(1, 3, prompt="the old", guidance=scale) for scale in (1.0, 2.0))
    assert (plain.nfe, doubled.nfe) == (3, 6)


def test_a_flow_learns_known_positions_from_a_trained_one_and_keeps_its_start(
    workshop: Workshop, tmp_path: Path
) -> None:
    flow, run = tmp_path / "flow", tmp_path / "run"
    assert main(workshop.arguments("flow", f"--run_dir={flow}", steps=2)) == 0
    start = [f"--model.autoencoder={flow / 'model'}", f"--model.initialise_from={flow / 'model'}"]
    assert main(workshop.arguments("known/prompts", *start, f"--run_dir={run}", steps=2)) == 0
    model = TextGenerator.from_pretrained(run / "model")
    assert model.model.flow().reads_known and model.model.identity.known_dropped == 0.1
    assert model.model.flow().network.known.abs().max() > 0  # two steps have moved it from zero
    assert model.generate(2, 2, prompt="the old", guidance=1.5).texts[0].startswith("the old")
    plain = TextGenerator.from_pretrained(flow / "model")
    with pytest.raises(UserError, match="never saw texts without"):
        plain.generate(1, 2, prompt="the old", guidance=1.5)


def test_rows_hold_prompts_continuations_and_gaps_and_a_page_shows_them_settle(tmp_path: Path) -> None:
    conditional_bundle().save_pretrained(tmp_path / "model")
    lines = [{"prompt": "the old"}, {"infill": f"{GAP} ship"}, {"prompt": "nobody"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = f"--prompts {tmp_path / 'in.jsonl'} --num_samples 2 --steps 2 --device cpu --gap_tokens 2"
    files = f"--output {tmp_path / 'out.jsonl'} --animate {tmp_path / 'page.html'}"
    assert command(["sample", str(tmp_path / "model"), *options.split(), *files.split()]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row.get("prompt", row.get("infill")) for row in rows] == ["the old"] * 2 + [f"{GAP} ship"] * 2 + [
        "nobody"
    ] * 2
    for row in rows:
        whole = row["prompt"] + row["continuation"] if "prompt" in row else row["gaps"][0] + " ship"
        assert row["text"] == whole
    frames = (tmp_path / "page.html").read_text().split('id="frames">')[1].split("</script>")[0]
    assert [len(each) for each in json.loads(frames)] == [2] * 6
