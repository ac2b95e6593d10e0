"""A page that shows texts settle step by step. L tokens, N steps."""

import html
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.model import SavedModel
    from fewstep.types import KnownTokens, SamplerState

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 18px/1.8 system-ui, sans-serif; max-width: 46em; margin: 2em auto; padding: 0 1em; color: #222; }}
p.text {{ border-left: 3px solid #ddd; padding-left: 1em; white-space: pre-wrap; }}
span.given {{ text-decoration: underline; }}
</style>
<h1>{title}</h1>
<p>Pale tokens are undecided: the probability of the likeliest token at its place. What is underlined was given.</p>
<p><button id="play">Pause</button> <input id="step" type="range" min="0" value="0" aria-label="step">
<span id="label"></span></p>
<div id="texts"></div>
<script type="application/json" id="frames">{frames}</script>
<script>
const texts = JSON.parse(document.getElementById("frames").textContent);
const [step, play] = ["step", "play"].map((id) => document.getElementById(id));
const last = Math.max(...texts.map((frames) => frames.length)) - 1;
let timer = null;
step.max = last;
function show() {{
  document.getElementById("texts").replaceChildren(...texts.map((frames) => {{
    const frame = frames[Math.min(+step.value, frames.length - 1)];
    const p = Object.assign(document.createElement("p"), {{ className: "text" }});
    p.append(...frame.tokens.map(([text, sure, given]) => {{
      const span = Object.assign(document.createElement("span"), {{ textContent: text, title: `${{sure}}` }});
      span.className = given ? "given" : "";
      span.style.opacity = given ? 1 : 0.2 + 0.8 * sure;
      return span;
    }}));
    return p;
  }}));
  const {{ block, step: k }} = texts[0][Math.min(+step.value, texts[0].length - 1)];
  document.getElementById("label").textContent = `block ${{block}}, step ${{k}}`;
}}
function stop() {{ clearInterval(timer); timer = null; play.textContent = "Play"; }}
function start() {{
  if (+step.value >= last) step.value = 0;
  timer = setInterval(() => {{
    if (+step.value >= last) return stop();
    step.value = +step.value + 1;
    show();
  }}, 700);
  play.textContent = "Pause";
}}
step.addEventListener("input", () => {{ stop(); show(); }});
play.addEventListener("click", () => (timer ? stop() : start()));
show();
start();
</script>
</html>
"""


class Animation:
    """Collects what the parallel readout would write at every step: ``generate`` calls :meth:`on_state`.

    It is for batches of one text. ``texts`` are lists of frames, one for each text that :meth:`next_text` has begun.
    """

    def __init__(self, model: "SavedModel") -> None:
        self.model = model
        self.reader = model.reader()
        self.texts: list[list[dict[str, Any]]] = []
        self._block = 0

    def next_text(self) -> None:
        """The states that follow are another text's."""
        self.texts.append([])
        self._block = 0

    def on_state(self, state: "SamplerState", known: "KnownTokens") -> None:
        """Keep the tokens of a step's estimate, and of x_1 after the last."""
        import torch

        from fewstep.data.tokenizer import decode_documents

        if state.x1_hat is None:
            self._block += 1
            return
        z = state.x_t if state.time == 1 else state.x1_hat
        mask = torch.ones(z.shape[:2], dtype=torch.bool, device=z.device)
        sure, ids = self.reader.logits(z, mask).float().softmax(-1)[0].max(-1)
        ids = torch.where(known.mask[0], known.ids[0], ids)
        tokens = []
        for token, share, given in zip(ids.tolist(), sure.tolist(), known.mask[0].tolist(), strict=True):
            if token == self.model.tokenizer.eos_token_id:
                break
            tokens.append([decode_documents(self.model.tokenizer, [token])[0], round(share, 2), given])
        self.texts[-1].append({"block": self._block, "step": state.step, "tokens": tokens})

    def page(self, title: str) -> str:
        """The page as HTML, which needs no other file."""
        frames = json.dumps(self.texts, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
        return PAGE.format(title=html.escape(title), frames=frames)
