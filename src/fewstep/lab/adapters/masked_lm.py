"""Masked language models: the last hidden state read by the model's own prediction head."""

from fewstep.evaluation.pretrained import Loading, load_transformers, model_folder
from fewstep.lab.adapters.decoders import TextDecoder
from fewstep.lab.adapters.text import ModelText, TextSource, read_text
from fewstep.lab.adapters.trunk import check_head, embedding_rows, head_of, last_states, max_positions, trunk_of

NOTE = (
    "masked-lm: latent: the last state at each token, the text whole and nothing masked; readout: the model's own "
    "prediction head, which was trained on masked places mostly"
)


def load_masked_lm(path: str, source: TextSource, loading: Loading) -> tuple[TextDecoder, ModelText]:
    """A masked language model of transformers (folder or hub name) as a decoder of its own input, and its text.

    A block stands between the special tokens that the tokenizer writes ([CLS] and [SEP]); a latent is the states (L, D)
    of the block's own tokens, and the readout the model's prediction head, which reads each by itself. Raises
    ``UserError`` for whatever is wrong with model, tokenizer or text.
    """
    folder = model_folder(path, loading)
    model, notes = load_transformers("AutoModelForMaskedLM", folder, loading, purpose="a masked language model")
    text = read_text(folder, source, embedding_rows(model), length=source.tokens, max_positions=max_positions(model))
    framed = text.framed(text.blocks)
    states, decode = last_states(trunk_of(model), framed, loading.device), head_of(model)
    check_head(model, decode, framed[:2], states[:2], path)
    ids = text.blocks.to(loading.device)
    return TextDecoder(path, decode, text.inner(states).contiguous(), ids, notes=(NOTE, *notes)), text
