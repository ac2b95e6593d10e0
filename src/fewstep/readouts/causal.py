"""One causal transformer with two uses: with latents a commitment head, without them a language model.

B batch, L tokens, K positions, D latent dimension, V vocabulary, W width.
"""

import torch
from torch import Tensor, nn

from fewstep.nn import Block, Context, KeyValueCache, TimeEmbedding, initialise
from fewstep.readouts.categorical import Held, TokenDraw, draw_unknown, hidden_nats
from fewstep.shapes import Generators, check_sizes, masked_mean, rand
from fewstep.types import Ending, KnownTokens, TokenSample


class CausalTransformer(nn.Module):
    """Next-token logits from earlier tokens and, if built with ``latent_dim``, from latents by cross-attention.

    The first token is predicted from a begin-of-block embedding, number V of the table. ``stride`` places latent k at
    the middle of its tokens.
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        latent_dim: int | None = None,
        stride: int = 1,
        width: int = 192,
        depth: int = 4,
        num_heads: int = 6,
    ) -> None:
        super().__init__()
        sizes = {"vocab_size": vocab_size, "latent_dim": latent_dim, "stride": stride}
        check_sizes("CausalTransformer", {**sizes, "width": width, "num_heads": num_heads})
        check_sizes("CausalTransformer", {"depth": depth}, least=0)
        self.config = {**sizes, "width": width, "depth": depth, "num_heads": num_heads}
        self.vocab_size = vocab_size
        self.stride = stride
        self.embedding = nn.Embedding(vocab_size + 1, width)
        self.latents = None if latent_dim is None else nn.Linear(latent_dim, width)
        self.level = None if latent_dim is None else TimeEmbedding(width)
        cross = latent_dim is not None
        self.blocks = nn.ModuleList(Block(width, num_heads, causal=True, cross=cross) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.outputs = nn.Linear(width, vocab_size, bias=False)
        initialise(self)
        if self.latents is not None and latent_dim is not None:
            nn.init.normal_(self.latents.weight, std=latent_dim**-0.5)

    def context(self, z: Tensor, mask: Tensor, noise_level: Tensor) -> Context:
        """Latents ``z`` (B, K, D) with ``mask`` (B, K) and the rms ``noise_level`` (B,) in them, to attend to."""
        assert self.latents is not None and self.level is not None, "a language model has no latents"
        # 1 / (1 + level) is the time of the linear path at which data and noise have this ratio.
        states = self.latents(z) + self.level(1 / (1 + noise_level))[:, None]
        positions = torch.arange(z.shape[1], device=z.device) * self.stride + (self.stride - 1) / 2
        return Context(states, mask, positions)

    def shift_right(self, ids: Tensor, sees_tokens: Tensor | None = None) -> Tensor:
        """Inputs (B, L) that predict ``ids`` (B, L): begin-of-block, then all but the last.

        Rows where ``sees_tokens`` (B,) is false have begin-of-block only.
        """
        begin = torch.full_like(ids, self.vocab_size)
        inputs = torch.cat([begin[:, :1], ids[:, :-1]], dim=1)
        return inputs if sees_tokens is None else torch.where(sees_tokens[:, None], inputs, begin)

    def forward(
        self, inputs: Tensor, context: Context | None = None, caches: list[KeyValueCache] | None = None
    ) -> Tensor:
        """Logits (B, N, V) of the token after each of ``inputs`` (B, N); see :meth:`hidden`."""
        return self.outputs(self.hidden(inputs, context, caches))

    def hidden(
        self, inputs: Tensor, context: Context | None = None, caches: list[KeyValueCache] | None = None
    ) -> Tensor:
        """Normed states (B, N, W) from which the logits after each of ``inputs`` (B, N) are read.

        ``caches`` of :meth:`empty_caches` hold the earlier inputs and the context, which replaces ``context``.
        """
        h = self.embedding(inputs)
        for index, block in enumerate(self.blocks):
            h = block(h, context=context, cache=None if caches is None else caches[index])
        return self.norm(h)

    def empty_caches(self, room: int, context: Context | None = None) -> list[KeyValueCache]:
        """One cache per block for up to ``room`` tokens; keys and values of ``context`` are computed here, once."""
        return [block.new_cache(room, context) for block in self.blocks if isinstance(block, Block)]

    @torch.no_grad()
    def start_from(self, language_model: "CausalTransformer") -> list[str]:
        """Copy a language model's weights; returns the names of the tensors that it does not have.

        Cross-attention adds nothing at first. Raises ``ValueError`` where the two differ in size.
        """
        theirs = language_model.state_dict()
        ours = self.state_dict()
        mismatched = [name for name, value in theirs.items() if name not in ours or ours[name].shape != value.shape]
        if mismatched:
            raise ValueError(
                f"the language model ({language_model.config}) does not fit this network ({self.config}), first at "
                f"{mismatched[0]}: give both the same vocabulary, width and depth"
            )
        self.load_state_dict(ours | theirs)
        for block in self.blocks:
            if isinstance(block, Block) and block.cross is not None:
                nn.init.zeros_(block.cross.out.weight)
        return [name for name in ours if name not in theirs]


@torch.no_grad()
def decode_cached(network: CausalTransformer, u: Tensor, context: Context | None, draw: TokenDraw) -> TokenSample:
    """Tokens (B, L), one for each uniform of ``u`` (B, L), with keys and values cached, the context's too.

    Known tokens are what later ones follow. A row leaves the batch at its end-of-text, and the loop stops when all
    have; what a row holds up to there does not depend on ``draw.ending``.
    """
    ending = draw.ending
    ids = torch.full(u.shape, 0 if ending is None else ending.pad_id, dtype=torch.long, device=u.device)
    log_probs = torch.zeros(u.shape, dtype=torch.float32, device=u.device)
    mask = torch.zeros(u.shape, dtype=torch.bool, device=u.device)
    rows, caches = torch.arange(len(u), device=u.device), network.empty_caches(u.shape[1], context)
    held = Held.of(draw.known)
    inputs = torch.full((len(u), 1), network.vocab_size, dtype=torch.long, device=u.device)
    for step in range(u.shape[1]):
        logits = network(inputs, None, caches)[:, -1]
        part = None if held is None else held.at(rows, step)
        token, log_prob = draw_unknown(logits, u[rows, step], part, draw)
        ids[rows, step], log_probs[rows, step], mask[rows, step] = token, log_prob, True
        if ending is not None and bool((going := token != ending.end_id).logical_not().any()):
            if not bool(going.any()):
                break
            rows, token = rows[going], token[going]
            for cache in caches:
                cache.keep(going)
        inputs = token[:, None]
    return TokenSample(ids, log_probs, None if ending is None else mask)


class LanguageModel(nn.Module):
    """A causal transformer without latents: the baseline to beat, and the scorer of a run's texts."""

    def __init__(self, network: CausalTransformer) -> None:
        super().__init__()
        if network.latents is not None:
            raise ValueError("a language model has no latents: build its CausalTransformer with latent_dim=None")
        self.network = network

    def token_nats(self, ids: Tensor) -> Tensor:
        """Negative log-likelihood (B, L) of every token given the ones before it, in nats, float32."""
        return hidden_nats(self.network.hidden(self.network.shift_right(ids)), self.network.outputs, ids)

    def loss(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Mean nats per real token (B,); ``mask`` (B, L)."""
        return masked_mean(self.token_nats(ids), mask)

    def generate(
        self,
        num_samples: int,
        num_tokens: int,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        ending: Ending | None = None,
        known: KnownTokens | None = None,
        generator: Generators,
    ) -> TokenSample:
        """Draw ``num_samples`` blocks of ``num_tokens``; settings as in :func:`draw_tokens`, see `decode_cached`."""
        u = rand((num_samples, num_tokens), self.network.embedding.weight, generator)
        return decode_cached(self.network, u, None, TokenDraw(temperature, top_p, top_k, ending, known))
