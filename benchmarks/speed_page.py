# SPDX-License-Identifier: Apache-2.0
"""The pages that show what `speed.py` and `gpu.py` measured."""

import json
from pathlib import Path
from typing import Any


BFLOAT16_LEFT_OUT = """

The rows in bfloat16 are left out: this CPU has no units for it and would take hours."""

MEMORY_NOTE = """

If nothing else is said glibc was told to keep freed memory, for both peers; docs/speed.md says how and why."""

# The summary's place in a page, between two comments.
BEGIN, END = "<!-- figures of benchmarks/speed.py: begin -->", "<!-- figures of benchmarks/speed.py: end -->"

COLUMNS = [f"{backbone}, batch {batch}" for backbone in ("ViT-B", "ViT-Ti") for batch in (1, 8, 32)]
CACHED = "training step on cached tokens, against one of the whole model"
ROWS = {
    "the paper's pyramid, float32": "inference, float32",
    "the paper's pyramid, bfloat16 autocast": "inference, bfloat16 autocast",
    "the narrow pyramid, float32": "inference, float32, narrow pyramid",
    "the light pyramid, float32": "inference, float32, light pyramid",
    "`optimize_for_inference`, float32": "optimised, float32, against the plain ViT as it is",
    "`optimize_for_inference`, bfloat16, against float32": "optimised, bfloat16, against the plain ViT as it is",
    "a training step": "training step",
    "a training step, narrow pyramid": "training step, narrow pyramid",
    "a training step, light pyramid": "training step, light pyramid",
    "a training step on cached tokens, against one of the whole model": CACHED,
    "the same, narrow pyramid": f"{CACHED}, narrow pyramid",
    "the same, no pyramid": f"{CACHED}, no pyramid",
}
# Quartiles stand in the summary where they are further apart.
WIDE = 0.1


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def other_machines(results: Path) -> list[dict[str, Any]]:
    """The results beside these that bear their name with something behind it, of other machines."""
    return [read(path) for path in sorted(results.parent.glob(f"{results.stem}_*.json"))]


def machine(report: dict[str, Any]) -> str:
    return f"{report['processor']} ({report['instructions']}), {report['threads']} threads, torch {report['torch']}"


def table(results: list[dict[str, Any]]) -> str:
    """Markdown table of the ratios, in groups."""
    lines = ["| what | ratio | quartiles | floor | ours, ms | peer, ms |", "|---|---|---|---|---|---|"]
    group = None
    for row in results:
        if row["group"] != group:
            group = row["group"]
            lines.append(f"| **{group}** | | | | | |")
        spread = f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}" if "ratio_low" in row else ""
        ours, peer = (row.get(f"{name}_ms", row.get(f"{name}_mib")) for name in ("ours", "peer"))
        floor = f"{row['floor']:.2f}" if "floor" in row else ""
        error = f", relative error {row['relative_error']:.0e}" if "relative_error" in row else ""
        lines.append(f"| {row['what']}{error} | {row['ratio']:.2f} | {spread} | {floor} | {ours:.1f} | {peer:.1f} |")
    return "\n".join(lines)


def profile_table(profiles: dict[str, dict[str, float]]) -> str:
    """Markdown table of the shares of the backbone's time, one column per profile."""
    lines = [f"| | {' | '.join(profiles)} |", "|---" * (len(profiles) + 1) + "|"]
    for part in next(iter(profiles.values())):
        lines.append(f"| {part} | {' | '.join(f'{shares[part]:.3f}' for shares in profiles.values())} |")
    return "\n".join(lines)


def figures(report: dict[str, Any], source: str = "") -> str:
    """All that was measured on one machine, and how."""
    notes = (MEMORY_NOTE if report["keeps_memory"] else "") + ("" if report["has_bfloat16"] else BFLOAT16_LEFT_OUT)
    bfloat16 = f" and {report['peak_bfloat16']:.0f} in bfloat16" if report["has_bfloat16"] else ""
    versions = f"Python {report['python']}, transformers {report['transformers']}"
    return f"""Printed by `{report["command"]}` on {report["date"]}.

{machine(report)}, {versions}.

One large product makes 10^9 multiply-adds a second times {report["peak"]:.0f} in float32{bfloat16}.{notes}

{table(report["results"])}

Where a forward pass spends its time, in shares of the backbone's:

{profile_table(report["profiles"])}{source}"""


def gpu_figures(path: Path) -> str:
    """What `gpu.py` measured, or that nothing was."""
    if not path.is_file():
        return "Not measured."
    report = read(path)
    lines = [
        f"{report['backbone']}, by `{report['command']}` on {report['date']}; {report['device']}, "
        f"torch {report['torch_version']}.",
        "",
        "The peak is one large product in the same dtype; of the model, its products and convolutions are counted.",
        "",
        "| form | dtype | batch | images per second | of the peak | ratio to the plain ViT |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["results"]:
        start = f"| {row['form']} | {row['dtype']} | {row['batch']} |"
        if "skipped" in row:
            lines.append(f"{start} not measured: {row['skipped']} | | |")
        else:
            lines.append(f"{start} {row['images_per_second']:.0f} | {row['peak_share']:.0%} | {row['ratio']:.2f} |")
    if "training" in report:
        training = report["training"]
        lines += [
            "",
            f"Training by the recipe {training['recipe']} took {training['minutes']:.1f} minutes, to an accuracy of "
            f"{training['accuracy']:.1%}.",
        ]
    return "\n".join(lines)


def write_page(path: Path, results: Path) -> None:
    """
    All results as a page: of the machine they were measured on, with the profile of an earlier form of the code where
    it is kept, then of the other machines beside them and of a GPU.
    """
    report, source, before = read(results), "", results.parent / "profile_before.json"
    if before.is_file():
        earlier = read(before)
        names = {f"{name}, before": shares for name, shares in earlier["profiles"].items()}
        source = f"""

An earlier form of the code, commit {earlier["commit"]}, by `{earlier["command"]}`:

{profile_table(names)}"""
    others = "".join(f"\n## {other['processor']}, limited\n\n{figures(other)}\n" for other in other_machines(results))
    text = f"""# Speed

Every ratio is the median over turns of two calls in one process, ours and the peer's; below 1 is faster than the peer.
If nothing else is said the peer is transformers' ViT of the same backbone with a linear head, the image has 224 x 224
pixels, and there are 13 + 95 concepts and 200 classes.

The floor is what the ratio would be if nothing but the matrix products and convolutions beyond the peer's took time,
as fast as one large product. That of an optimised copy counts all its own.

## {report["processor"]}

{figures(report, source)}
{others}
## A GPU

{gpu_figures(results.parent / "gpu.json")}
"""
    path.write_text(text, encoding="utf-8")


def summary_table(report: dict[str, Any]) -> str:
    """The ratios that matter, a row per form of the model and a column per backbone and batch."""
    found = {(row["group"], row["what"]): row for row in report["results"]}

    def cell(group: str, what: str) -> str:
        row = found.get((group, what))
        if row is None:
            return ""
        wide = row["ratio_high"] - row["ratio_low"] > WIDE * row["ratio"]
        return f"{row['ratio']:.2f}" + (f" ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})" if wide else "")

    lines = [f"| ratio to the plain ViT | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for title, group in ROWS.items():
        cells = [cell(group, what) for what in COLUMNS]
        if any(cells):
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def other_ratios(report: dict[str, Any]) -> str:
    """Sentences on what is not measured against the plain ViT; those whose figures are there."""
    ratios = {(row["group"], row["what"]): row["ratio"] for row in report["results"]}

    def ratio(group: str, what: str) -> float | None:
        return ratios.get((group, what))

    sentences = []
    sampling = "deformable sampling, against transformers"
    for width in (768, 192):
        forward, both = (ratio(sampling, f"width {width}, batch 8, forward{more}") for more in ("", " and backward"))
        if forward and both:
            sentences.append(
                f"At width {width} the deformable sampling is {1 / forward:.1f} times as fast as transformers', and "
                f"{1 / both:.1f} times with its gradient."
            )
    explained = [value for (group, _), value in ratios.items() if group == "explanation, against prediction"]
    if explained:
        sentences.append(
            f"All contributions and maps take {max(explained):.2f} times as long as the prediction alone."
        )
    memory = ratio("growth of memory in forward, MiB", "ViT-B, batch 32")
    if memory:
        sentences.append(f"Memory grows by {memory:.2f} of what the plain ViT-B takes in a forward pass of 32 images.")
    return "\n".join(sentences)


def write_summary(path: Path, results: Path) -> None:
    """
    Puts the ratios that matter, each table under its machine's name, between the two comments of a page.

    Raises:
        ValueError: for a page without them.
    """
    text = path.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{path} has no place for the summary: put {BEGIN} and {END} there.")
    parts = [
        f"On {machine(report)}:\n\n{summary_table(report)}\n\n{other_ratios(report)}".strip()
        for report in [read(results), *other_machines(results)]
    ]
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    path.write_text(f"{text[:start]}\n\n" + "\n\n".join(parts) + f"\n\n{text[end:]}", encoding="utf-8")
