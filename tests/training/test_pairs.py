"""A model of pairs: trained on answers alone, it says so, and is scored on held-out prompts."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from fewstep.cli.main import main as command
from fewstep.denoisers import RegressionDenoiser
from fewstep.errors import UserError
from fewstep.evaluation.measures import PROMPTS, answers
from fewstep.evaluation.rows import RowFile
from fewstep.evaluation.sweep import Batch, Samples
from fewstep.model import SavedModel
from fewstep.objectives import FlowMatching, KnownPositions
from fewstep.schedules import UniformTime
from fewstep.training.command import main
from fewstep.training.data_modules import TextDataModule
from fewstep.training.flow import FlowModule
from tests.data.test_pairs import copies, write_pairs
from tests.evaluation.test_given import given_study
from tests.evaluation.test_texts import SAMPLES
from tests.runs import Workshop

FIELDS = {"prompt_field": "question", "text_field": "answer"}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs, and a flow that was trained on their text and then on their answers."""
    folder = tmp_path_factory.mktemp("pairs")
    file = write_pairs(folder / "pairs.jsonl", copies(200))
    shop = Workshop(folder)
    fields = [f"--data.{name}={value}" for name, value in FIELDS.items()]
    data = [*fields, f"--data.source={file}", "--data.blocks=documents", "--data.block_size=20"]
    data += ["--data.max_documents=null"]
    built = [f"--model.autoencoder={folder / 'flow' / 'model'}", f"--model.initialise_from={folder / 'flow' / 'model'}"]
    for stage, flags in (("autoencoder", []), ("flow", []), ("known/prompts", built), ("language_model", [])):
        run_dir = f"--run_dir={folder / Path(stage).name}"
        assert main(shop.arguments(stage, *data, *flags, run_dir, steps=2)) == 0
    return folder


def test_the_loss_is_of_answers_alone_and_the_saved_model_names_its_fields(pairs: Path) -> None:
    model = SavedModel.from_pretrained(pairs / "prompts" / "model")
    identity = model.identity
    assert {name: getattr(identity, name) for name in FIELDS} == FIELDS
    assert identity.known_dropped == 0.1 and model.flow().reads_known
    data = TextDataModule(
        source=str(pairs / "pairs.jsonl"),
        cache_dir=str(pairs / "cache"),
        vocab_size=300,
        block_size=20,
        tokenizer=str(pairs / "flow" / "model" / "tokenizer"),
        **FIELDS,
    )
    batch = next(iter(data.val_dataloader()))
    assert batch["known"].any(1).all()
    module = FlowModule(
        data,
        str(pairs / "flow" / "model"),
        FlowMatching(UniformTime()),
        lambda latent_dim, positions: RegressionDenoiser(latent_dim, positions, width=16, depth=1, num_heads=2),
        known=KnownPositions(dropped=0.0),
    )
    latents, given = module._given(batch, torch.Generator().manual_seed(0))
    known = batch["known"].unflatten(1, (latents.mask.shape[1], -1)).all(-1)
    assert torch.equal(latents.mask, ~known)
    flow = given(model.flow())
    assert torch.equal(flow.known.mask, known)
    changed = {**batch, "ids": torch.where(batch["known"], batch["ids"], (batch["ids"] + 1) % 290)}
    again = module._given(changed, torch.Generator().manual_seed(0))[1](model.flow())
    assert torch.equal(again.known.z[known], flow.known.z[known]), "the answer says nothing of the prompt"


def test_held_out_prompts_are_answered_and_the_answers_compared(pairs: Path, tmp_path: Path) -> None:
    pytest.importorskip("rouge_score")
    merged = tmp_path / "model"
    parts = [str(pairs / stage / "model") for stage in ("prompts", "language_model")]
    assert command(["convert", *parts, str(merged)]) == 0
    few = "--steps 2 --reinjection 0 --readout parallel --samples 4 --seeds 2 --matched_entropy 1 --device cpu"
    options = [*few.split(), "--cache_dir", str(pairs / "cache"), "--out", str(tmp_path / "out")]
    assert command(["evaluate", str(merged), "--source", str(pairs / "pairs.jsonl"), *options]) == 0
    rows = RowFile(tmp_path / "out" / "rows.jsonl").read()
    held_out, *_, flow = rows
    assert held_out.value("exact_match") == 1 and held_out.value("rouge_l") == pytest.approx(1)
    assert flow.value("exact_match") < 1 and {row.value("kept") for row in rows} == {1.0}
    assert all(row.value("perplexity") > 1 and row.protocol["given"] == PROMPTS for row in rows)
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| exact | 95 % interval | ROUGE-L | 95 % interval |" in table


def test_rouge_is_the_longest_common_subsequence_of_words_and_without_its_package_one_line_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = given_study("prompt", "documents")
    own = dataclasses.replace(own, real=dataclasses.replace(own.real, given_rule=PROMPTS))
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "rouge_score.rouge_scorer", None)
        with pytest.raises(UserError, match=r"pip install 'fewstep\[rouge\]'"):
            own.plan([])
    pytest.importorskip("rouge_score")
    tokenizer = own.bundle.tokenizer
    ids = torch.full((SAMPLES, 40), int(tokenizer.eos_token_id))
    for row, line in enumerate(["the old ship sailed", "past the lights", "we know"]):
        tokens = tokenizer(line)["input_ids"]
        ids[row, : len(tokens)] = torch.tensor(tokens)
    tokens = dataclasses.replace(own.real.held_out, ids=ids, mask=torch.ones_like(ids, dtype=torch.bool))
    nothing = torch.zeros_like(ids, dtype=torch.bool)
    own = dataclasses.replace(own, seeds=(0,), real=dataclasses.replace(own.real, held_out=tokens, given=nothing))
    written = torch.full_like(ids, int(tokenizer.eos_token_id))
    for row, line in enumerate(["the ship sailed old", "past the lights", "nobody"]):
        new = tokenizer(line)["input_ids"]
        written[row, : len(new)] = torch.tensor(new)
    measure = answers(own)
    assert measure is not None
    samples = Samples({"ids": written, "mask": torch.ones_like(nothing)})
    taken = measure.take({}, Batch(0, 0, 0, SAMPLES), samples)["answers"]
    assert taken[:, 0].tolist() == [0, 1, 0]
    assert taken[:, 1].tolist() == pytest.approx([3 / 4, 1, 0])  # the, ship, sailed of 4 words on either side
