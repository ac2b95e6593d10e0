"""Causal language models: the last hidden state read by the model's own head."""

from fewstep.evaluation.pretrained import Loading, load_transformers, model_folder
from fewstep.lab.adapters.decoders import TextDecoder
from fewstep.lab.adapters.text import ModelText, TextSource, read_text
from fewstep.lab.adapters.trunk import check_head, embedding_rows, head_of, last_states, max_positions, trunk_of

NOTE = (
    "causal-lm: latent: the state at each token after the last norm; readout: the model's own head, which predicts the "
    "next token, so that its token accuracy is that of a language model and not of a copy"
)


def load_causal_lm(path: str, source: TextSource, loading: Loading) -> tuple[TextDecoder, ModelText]:
    """A causal language model of transformers (folder or hub name) as a decoder of the next token, and its text.

    A latent is the final hidden states (L, D) as the head reads them; the readout is all that the model does after
    them. Blocks of L + 1 tokens are read: the first L make the latent, the last L are what it stands for. No special
    token is put around them. Raises ``UserError`` for whatever is wrong with model, tokenizer or text.
    """
    folder = model_folder(path, loading)
    model, notes = load_transformers("AutoModelForCausalLM", folder, loading, purpose="a causal language model")
    text = read_text(
        folder, source, embedding_rows(model), length=source.tokens + 1, max_positions=max_positions(model)
    )
    inputs, ids = text.blocks[:, :-1], text.blocks[:, 1:].to(loading.device)
    z, decode = last_states(trunk_of(model), inputs, loading.device), head_of(model)
    check_head(model, decode, inputs[:2], z[:2], path)
    return TextDecoder(path, decode, z, ids, notes=(NOTE, *notes)), text
