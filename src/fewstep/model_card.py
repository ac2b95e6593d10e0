"""The README.md of a saved model. A card is for readers: nothing of it is ever read when a model is loaded."""

from fewstep.storage import Manifest

CORPORA = {
    "sotu": "State of the Union addresses, 1790 to 2026 (US federal texts, in the public domain)",
    "grammar": "sentences drawn from the project's own grammar",
    "Digits": "scikit-learn's handwritten digits (UCI, CC BY 4.0)",
    "DrawnShapes": "shapes drawn by the project",
}
"""Training data whose origin and licence are known."""
ABOUT = {
    "text": "A few-step text generator: a flow on continuous latents, and readouts from latents to tokens.",
    "images": "An image autoencoder with a flow on its latents, the continuous counterpart of a text model.",
}
TASK = {"text": "text-generation", "images": "unconditional-image-generation"}


def model_card(name: str, manifest: Manifest, *, scores: str = "", license: str | None = None) -> str:
    """Markdown with YAML front matter. ``scores`` is a Markdown table, ``license`` the hub's name of one."""
    identity = manifest.identity
    kind, steps = identity["kind"], identity["trained_nfe"]
    front = ["---", "library_name: fewstep", f"pipeline_tag: {TASK[kind]}", "tags: [flow-matching, few-step]"]
    front += [f"license: {license}"] if license else []
    parts = [f"| {part} | `{spec.class_path}` |" for part, spec in manifest.parts.items()]
    facts = [
        f"- Training data: {CORPORA.get(identity['source'], identity['source'] or 'not recorded')}",
        f"- License of the weights: {license or 'not stated'}",
        f"- Objective: {identity['objective'] or 'not recorded'}; path: {identity['path']}",
        f"- Sampling steps that it was trained for: {'any number' if steps is None else steps}",
    ]
    if kind == "text":
        facts.append(f"- Block: {identity['block_size']} tokens")
    lines = [
        *front,
        "---",
        "",
        f"# {name}",
        "",
        ABOUT[kind],
        "",
        *facts,
        "",
        "| part | class |",
        "|---|---|",
        *parts,
        "",
    ]
    if scores:
        lines += ["## Scores", "", scores.strip(), ""]
    if kind == "text" and "denoiser" in manifest.parts:
        command = f"fewstep sample {name} --num_samples 4 --steps {4 if steps is None else steps}"
        lines += ["## Use", "", "```bash", "pip install fewstep", command, "```", ""]
    lines += ["Saved by fewstep " + identity["versions"].get("fewstep", "(version not recorded)") + ".", ""]
    return "\n".join(lines)
