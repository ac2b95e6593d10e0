"""The page of ``studies/accelerator.py``: its numbers as Markdown tables, and a picture of the speeds."""

from pathlib import Path
from typing import Any

from fewstep.cli.output import write_text
from fewstep.diagnostics.result import Picture, Series
from fewstep.evaluation.columns import markdown_table, rounded
from fewstep.evaluation.pictures import write_pictures


def write_page(results: dict[str, Any], folder: Path) -> Path:
    """Write ``speed.png`` and ``accelerator.md`` into ``folder``; returns the page."""
    parts, settings, made_by = results["parts"], results["settings"], results["provenance"]
    done = [("part", "seconds", "peak memory (GiB)", "steps", "compiled", "tokens/s")]
    speeds = [("length", "batch", "by", "tokens/s", "times GPT-2's speed", "utilisation", "repeats")]
    scores = [("text", "K", "perplexity", "entropy (nats)", "a sample")]
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, part in parts.items():
        stage = ("", "", "")
        if "steps" in part:
            stage = (f"{part['steps']:,}", "yes" if part["compiled"] else "no", rounded(part["tokens_per_second"]))
        done.append((name, rounded(part["seconds"]), rounded(part["peak_memory_gib"]), *stage))
        for by, row in part["rows"].items() if name.startswith("speed_") and "rows" in part else ():
            _, length, batch = name.split("_")
            used = f"{row['utilisation']:.1%}" if "utilisation" in row else ""
            rate = f"{row['tokens_per_second']:,.0f} ({row['lowest']:,.0f} - {row['highest']:,.0f})"
            speeds.append((length, batch, by, rate, row["times_gpt2"], used, str(row["repeats"])))
            lines.setdefault(length, {}).setdefault(by, []).append((float(batch), row["tokens_per_second"]))
    for row in parts["scores"]["rows"]:
        sample, entropy = " ".join(row["examples"][0].split()).replace("|", "/"), f"{row['entropy_nats']:.2f}"
        scores.append((row["text"], str(row.get("num_steps", "")), rounded(row["perplexity"]), entropy, sample))
    pictures = [
        Picture(f"Blocks of {length} tokens", "batch size", "tokens per second", series, log_x=True, log_y=True)
        for length, by in lines.items()
        for series in [tuple(Series(name, *zip(*points, strict=True)) for name, points in by.items())]
    ]
    write_pictures(pictures, folder / "speed.png")
    left_out = [f"- {name} is left out: {part['left_out']}" for name, part in parts.items() if "left_out" in part]
    plans = results["plans"].items()
    left_out += [f"- {stage} could not be compiled: {plan['problem']}" for stage, plan in plans if plan["problem"]]
    rates, first, used = parts["rates"], parts["speed_128_1"], parts["rates"]["flow_utilisation"]
    sheet = f"{rates['peak_flops'] / 1e12:,.0f} by its data sheet" if rates["peak_flops"] else "no data sheet known"
    caption = (
        "Medians (lowest - highest); the ratio to GPT-2 is taken within a repeat. Weights are random; at 128 tokens "
        f"flow and readout have {first['parameters']:,} parameters, GPT-2 {first['gpt2_parameters']:,}."
    )
    page = f"""# {settings["card"]}, {results["date"]}

Size {settings["size"]}, text {settings["source"]}. Matrix products run at {rates["measured_flops"] / 1e12:,.3g} TFLOP/s
({sheet}). Utilisation is of the data sheet's rate, else of the measured; training the flow: {used:.1%}.

![Tokens per second over the batch size](speed.png)

{markdown_table(speeds, caption)}
{markdown_table(done, "What was done; tokens/s are those of training, without validation.")}
{markdown_table(scores, "Perplexity under the run's own language model.")}
{chr(10).join(left_out)}

Tests marked cuda: {parts["tests"].get("output", "none run").splitlines()[-1]}

`{made_by["command"]}`, torch {made_by["versions"]["torch"]}, commit {made_by["commit"]}.
"""
    write_text(folder / "accelerator.md", page)
    return folder / "accelerator.md"
