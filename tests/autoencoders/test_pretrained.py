"""Laws of a frozen encoder: its latents are transformers' states, whitened, of any layer, and training leaves them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from fewstep.autoencoders import PretrainedEncoder
from fewstep.errors import UserError
from fewstep.model import PartSpec, build_part
from fewstep.objectives import Reconstruction
from fewstep.readouts import LinearReadout, token_accuracy
from fewstep.storage import load_strictly
from fewstep.types import TokenBatch
from tests.nn.builders import first, normal

V, WIDTH, LAYERS = 23, 12, 3
KINDS = ("bert", "t5")
PREFIX = {"bert": [2], "t5": []}
"""What goes before a block: BERT's [CLS]."""


def write(folder: Path, kind: str) -> Path:
    """A random model of transformers, with matrices so large that its layers differ."""
    sizes = {"vocab_size": V, "num_attention_heads": 2, "num_hidden_layers": LAYERS}
    if kind == "bert":
        config: Any = BertConfig(**sizes, hidden_size=WIDTH, intermediate_size=16, max_position_embeddings=16)
    elif kind == "t5":
        config = T5Config(vocab_size=V, d_model=WIDTH, d_kv=4, d_ff=16, num_layers=LAYERS, num_heads=2)
    else:
        config = GPT2Config(vocab_size=V, n_positions=16, n_embd=WIDTH, n_layer=1, n_head=2)
    classes = {"bert": BertForMaskedLM, "t5": T5ForConditionalGeneration, "gpt2": GPT2LMHeadModel}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = classes[kind](config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 and kind == "bert" else 1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    root = tmp_path_factory.mktemp("encoders")
    return lambda kind: str(root / kind if (root / kind).exists() else write(root / kind, kind))


def build(folder: str, layer: int = -1, latent_dim: int | None = None) -> PretrainedEncoder:
    return PretrainedEncoder(V, folder, layer, latent_dim, PREFIX.get(Path(folder).name, [2]))


def tokens(generator: torch.Generator, lengths: tuple[int, ...] = (9, 4, 1)) -> TokenBatch:
    return TokenBatch(torch.randint(V, (len(lengths), 9), generator=generator), first(list(lengths), 9))


def own_states(folder: str, batch: TokenBatch, layer: int) -> Tensor:
    """States by the whole model of transformers, without anything of ours."""
    model = AutoModel.from_pretrained(folder).eval()
    model = model.encoder if model.config.is_encoder_decoder else model
    with torch.no_grad():
        ids = torch.tensor([[*PREFIX[Path(folder).name], *row] for row in batch.ids.tolist()])
        before = ids.shape[1] - batch.ids.shape[1]
        mask = torch.cat([torch.ones(len(ids), before), batch.mask], dim=1)
        output = model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
    assert len(output.hidden_states) == LAYERS + 1
    return output.hidden_states[layer][:, before:]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [-1, -2, 1, 0])
def test_latents_are_the_states_of_the_layer_after_unwhitening(
    folders: Any, kind: str, layer: int, generator: torch.Generator
) -> None:
    batch, encoder = tokens(generator), build(folders(kind), layer)
    expected = own_states(folders(kind), batch, layer)
    encoder.whitening.fit(3 * normal((2, 40, WIDTH), generator) + 1, torch.ones(2, 40).bool())
    z = encoder.eval().encode(batch.ids, batch.mask).z
    states = z * (encoder.whitening.variance + 1e-6).sqrt() + encoder.whitening.mean
    torch.testing.assert_close(states[batch.mask], expected[batch.mask], rtol=1e-4, atol=1e-4)
    assert (z[~batch.mask] == 0).all()
    others = [own_states(folders(kind), batch, other) for other in range(LAYERS + 1) if other != layer % (LAYERS + 1)]
    assert min((other - expected)[batch.mask].abs().max() for other in others) > 1e-2, "the layers differ"


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_no_latent(folders: Any, kind: str, generator: torch.Generator) -> None:
    batch, encoder = tokens(generator, (9, 4, 0)), build(folders(kind), latent_dim=5).eval()
    z = encoder.encode(batch.ids, batch.mask).z
    other = torch.where(batch.mask, batch.ids, (batch.ids + 1) % V)
    padded = encoder.encode(torch.cat([other, other[:, :4]], dim=1), first([9, 4, 0], 13)).z
    torch.testing.assert_close(padded[:, :9], z, rtol=0, atol=1e-5)
    assert z.isfinite().all()


@pytest.mark.parametrize(("kind", "latent_dim"), [("bert", None), ("t5", 6)])
def test_training_changes_no_weight_of_the_network_and_teaches_readout_and_bottleneck(
    folders: Any, kind: str, latent_dim: int | None, generator: torch.Generator
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = build(folders(kind), 1, latent_dim).train()
        readout = LinearReadout(V, encoder.latent_dim)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    batch = tokens(generator, (9,) * 16)
    states = encoder.states(batch.ids, batch.mask)
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    assert len(trained) == (latent_dim is not None)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *readout.parameters()], lr=3e-2, weight_decay=0.1)
    for _ in range(80):
        optimizer.zero_grad()
        Reconstruction(noise_level_max=0.1).forward(encoder, readout, batch, generator=generator).loss.backward()
        optimizer.step()
    changed = {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("network") for name in changed)
    assert any(name.startswith("whitening") for name in changed)
    assert ("bottleneck.weight" in changed) == (latent_dim is not None)
    assert torch.equal(encoder.states(batch.ids, batch.mask), states), "no dropout in training mode"
    with torch.no_grad():
        z = encoder.encode(batch.ids, batch.mask).z
    assert token_accuracy(readout, z, batch.ids, batch.mask) > 0.85


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [-1, 1])
def test_a_saved_encoder_is_built_without_its_folder(
    folders: Any, kind: str, layer: int, tmp_path: Path, generator: torch.Generator
) -> None:
    source = Path(shutil.copytree(folders(kind), tmp_path / "source"))
    encoder = PretrainedEncoder(V, str(source), layer, 5, PREFIX[kind]).train()
    batch = tokens(generator)
    encoder.encode(batch.ids, batch.mask)  # moves the stored statistics
    shutil.rmtree(source)
    again = build_part("autoencoder", PartSpec("fewstep.autoencoders.PretrainedEncoder", encoder.config), "a test")
    load_strictly(again, encoder.state_dict(), "a test")
    assert str(source) not in str(encoder.config)
    assert torch.equal(again.eval().encode(batch.ids, batch.mask).z, encoder.eval().encode(batch.ids, batch.mask).z)
    assert again.config == encoder.config
    with pytest.raises(UserError, match="1 missing"):
        weights = {name: value for name, value in encoder.state_dict().items() if name != "bottleneck.weight"}
        load_strictly(again, weights, "a test")


def test_whitening_is_the_mean_over_all_batches(folders: Any, generator: torch.Generator) -> None:
    encoder = build(folders("t5"), 1).train()
    batches = [tokens(generator, (9,) * 4) for _ in range(3)]
    for batch in batches:
        encoder.encode(batch.ids, batch.mask)
    states = torch.stack([encoder.states(batch.ids, batch.mask) for batch in batches])
    torch.testing.assert_close(encoder.whitening.mean, states.mean((0, 1, 2)))
    torch.testing.assert_close(encoder.whitening.variance, states.var((1, 2), correction=0).mean(0))


def test_a_readout_starts_where_each_embedding_reads_as_its_own_token(folders: Any) -> None:
    encoder = build(folders("bert"))
    readout = LinearReadout(V, WIDTH)
    codes = encoder.first_codes()
    assert codes is not None
    torch.testing.assert_close(codes.square().mean(1), torch.ones(V))
    readout.start_from(codes)
    ids = torch.arange(V)[None]
    assert token_accuracy(readout, codes[None], ids, torch.ones_like(ids).bool()) > 0.9


@pytest.mark.parametrize(
    ("name", "layer", "vocab_size", "message"),
    [
        ("bert", 4, V, r"layer is 4, expected a number from -4 to 3"),
        ("bert", -5, V, r"layer is -5, expected"),
        ("bert", -1, V + 1, r"has 24 tokens, .* embeds 23"),
        ("gpt2", -1, V, r"is of type gpt2: give a text encoder"),
        ("nowhere/at/all", -1, V, r"nowhere/at/all, which is no folder"),
    ],
)
def test_what_it_cannot_take_is_refused_in_a_line(
    folders: Any, name: str, layer: int, vocab_size: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        PretrainedEncoder(vocab_size, name if "/" in name else folders(name), layer)
    with pytest.raises(UserError, match="a block of 16 tokens, and the encoder has positions for 15"):
        build(folders("bert")).num_latents(16)


def test_weights_that_are_missing_are_not_left_random(folders: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(folders("bert"), tmp_path / "bert"))
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if "layer.0.output.dense.weight" in name)
    save_file(
        {name: value for name, value in weights.items() if name != lost}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UserError, match=r"lacks 1 weights, first encoder\.layer\.0\.output\.dense\.weight"):
        PretrainedEncoder(V, str(folder))


def test_what_the_tokenizer_writes_before_a_text_goes_before_a_block(folders: Any, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    folder = Path(shutil.copytree(folders("bert"), tmp_path / "bert"))
    with pytest.raises(UserError, match="holds no tokenizer"):
        PretrainedEncoder(V, str(folder))
    words = {word: number for number, word in enumerate(["[UNK]", "[SEP]", "[CLS]", "a", "ship"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [("[CLS]", 2), ("[SEP]", 1)]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", sep_token="[SEP]").save_pretrained(folder)
    assert PretrainedEncoder(V, str(folder)).prefix.tolist() == [2]
