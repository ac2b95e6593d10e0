"""One causal transformer that is two things: with latents a commitment head, without them a language model.

B batch, L tokens, K positions, D latent dimension, V vocabulary, W width.
"""

import torch
from torch import Tensor, nn

from fewstep.nn import Block, Context, KeyValueCache, TimeEmbedding, initialise
from fewstep.readouts.categorical import hidden_nats
from fewstep.shapes import check_sizes


class CausalTransformer(nn.Module):
    """Next-token logits from earlier tokens and, if built with ``latent_dim``, from latents by cross-attention.

    The first token is predicted from a begin-of-block embedding, number V of the table. ``stride`` places latent k
    at the middle of the tokens it stands for. The latents' noise level (rms) is part of the input, so the network can
    tell how far to trust them. Raises ``ValueError`` for sizes that are none.
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
        """Latents ``z`` (B, K, D) with ``mask`` (B, K) and ``noise_level`` (B,) rms, ready to be attended to.

        Raises ``ValueError`` on a network without latents.
        """
        if self.latents is None or self.level is None:
            raise ValueError("this network was built without latents (latent_dim=None): it is a language model")
        # 1 / (1 + level) is the time of the linear path at which data and noise stand in this ratio.
        states = self.latents(z) + self.level(1 / (1 + noise_level))[:, None]
        positions = torch.arange(z.shape[1], device=z.device) * self.stride + (self.stride - 1) / 2
        return Context(states, mask, positions)

    def shifted(self, ids: Tensor) -> Tensor:
        """Inputs (B, L) that predict ``ids`` (B, L): begin-of-block, then all but the last."""
        return torch.cat([torch.full_like(ids[:, :1], self.vocab_size), ids[:, :-1]], dim=1)

    def unseen(self, ids: Tensor) -> Tensor:
        """Inputs (B, L) like :meth:`shifted` that tell nothing of ``ids``: begin-of-block at every place."""
        return torch.full_like(ids, self.vocab_size)

    def forward(
        self,
        inputs: Tensor,
        context: Context | None = None,
        caches: list[KeyValueCache] | None = None,
    ) -> Tensor:
        """Logits (B, N, V) of the token after each of ``inputs`` (B, N); see :meth:`hidden`."""
        return self.outputs(self.hidden(inputs, context, caches))

    def token_nats(self, inputs: Tensor, ids: Tensor, context: Context | None = None) -> Tensor:
        """Negative log-likelihood (B, N) in nats of ``ids`` (B, N), each after its one of ``inputs`` (B, N).

        A large vocabulary's logits are not held all at once (:func:`~fewstep.readouts.hidden_nats`).
        """
        return hidden_nats(self.hidden(inputs, context), self.outputs, ids)

    def hidden(
        self,
        inputs: Tensor,
        context: Context | None = None,
        caches: list[KeyValueCache] | None = None,
    ) -> Tensor:
        """States (B, N, W), normed, from which the logits after each of ``inputs`` (B, N) are read.

        ``caches``, of :meth:`empty_caches`, hold the earlier inputs and the context. Raises ``ValueError`` if they
        come with a ``context``, or have no room left.
        """
        if context is not None and caches is not None:
            raise ValueError("caches hold their context already: give it to empty_caches, not beside the caches")
        h = self.embedding(inputs)
        for index, block in enumerate(self.blocks):
            h = block(h, context=context, cache=None if caches is None else caches[index])
        return self.norm(h)

    @torch.no_grad()
    def start_from(self, language_model: "CausalTransformer") -> list[str]:
        """Take over a language model's weights; returns the names of the tensors that it does not have.

        Cross-attention is set to add nothing, so the network with latents starts as the language model, whatever the
        latents are, and only has to learn to listen. Raises ``ValueError`` where the two differ in size.
        """
        theirs = language_model.state_dict()
        ours = self.state_dict()
        unfit = [name for name, value in theirs.items() if name not in ours or ours[name].shape != value.shape]
        if unfit:
            raise ValueError(
                f"the language model ({language_model.config}) does not fit this network ({self.config}), first at "
                f"{unfit[0]}: give both the same vocabulary, width and depth"
            )
        self.load_state_dict(ours | theirs)
        for block in self.blocks:
            if isinstance(block, Block) and block.cross is not None:
                nn.init.zeros_(block.cross.out.weight)
        return [name for name in ours if name not in theirs]

    def empty_caches(self, room: int, context: Context | None = None) -> list[KeyValueCache]:
        """A cache a block for up to ``room`` tokens; keys and values of ``context`` are computed here, once for all."""
        return [block.new_cache(room, context) for block in self.blocks if isinstance(block, Block)]
