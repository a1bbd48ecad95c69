# SPDX-License-Identifier: Apache-2.0
"""The app of a Space, which shows what a model sees in an image, and what it would say had it seen something else."""

import html
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from ascent_vit.explanation import CorrectedExplanation, Explanation, explain, intervene
from ascent_vit.explanation.intervene import Concept, Correction
from ascent_vit.explanation.render.plot import (
    ATTENTION_COLORS,
    CONTRIBUTION_COLORS,
    LEAST_SPAN,
    add_scale,
    draw_maps,
    top_of,
    wrapped,
)
from ascent_vit.explanation.render.rows import contribution_rows, signed
from modeling_ascent_vit.class_scores_ascent_vit import score_function
from modeling_ascent_vit.concept_pipeline_ascent_vit import (
    ConceptImageClassificationPipeline,
    check_model_and_processor,
)
from modeling_ascent_vit.image_reading_ascent_vit import read_image
from modeling_ascent_vit.names_ascent_vit import class_names, concept_names

from .space_doubt import add_doubt
from .space_similar import add_similar


if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from ascent_vit.cases import ConceptIndex
    from ascent_vit.inference import ConceptClassifier, ConceptImageProcessor
    from ascent_vit.safeguard import Safeguard

# Largest numbers of concepts with a bar of their own, and of classes with a probability.
BARS, CLASSES = 10, 5
MAP_SIZE = 3.2  # inches
# Stands for a choice that is left to the app: the class to explain or to compare with, the concept to map.
AUTOMATIC = -1

MAX_FILE_SIZE = "20mb"
FONTS = ["system-ui", "sans-serif"]
MONOSPACE_FONTS = ["ui-monospace", "monospace"]

HELP = (
    "Choose an image. The model says what it is, and its score is the sum of what each of its concepts contributed. "
    "Set concepts by hand to see what the model would say then."
)
COMPETITION = (
    "Attention is a competition between concepts for each place in the image: it adds up to 1, or to less where "
    "&ldquo;none of them&rdquo; takes part. It is not the probability that a concept is present."
)
SET_BY_HAND = (
    "Present: the chosen concepts share all the attention of their kind, everywhere in the image. Absent: they get "
    "none. All others are left to the model."
)
MAP_MEANING = (
    "Left: attention of each place to the concept. Right: what the concept added to the score there; purple speaks "
    "for the class, orange against it."
)

CSS = """
/* An image of few pixels fills its frame too. */
#image .image-frame, #image .image-frame img { width: 100%; height: 100%; object-fit: contain; }
.ascent h1 { margin: 0; font-size: 1.6rem; overflow-wrap: anywhere; }
.ascent p { margin: .25rem 0; overflow-wrap: anywhere; }
.ascent [role="alert"] { border-left: 3px solid #e66101; padding-left: .6rem; }
.ascent .soft, .ascent thead th { font-size: .875rem;
  color: color-mix(in srgb, var(--body-text-color) 75%, transparent); }
.ascent table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.ascent caption { text-align: left; padding: .25rem 0 .5rem; font-weight: 600; overflow-wrap: anywhere; }
.ascent table, .ascent table tr, .ascent table th, .ascent table td { border: 0; }
.ascent th, .ascent td { padding: .2rem .4rem; text-align: left; font-weight: 400; }
.ascent table .number { text-align: right; white-space: nowrap; }
.ascent tbody th { overflow-wrap: anywhere; }
.ascent table tfoot tr:first-child > * { border-top: 1px solid var(--body-text-color-subdued); }
.ascent table tfoot tr:last-child > * { border-top: 1px solid var(--body-text-color-subdued); font-weight: 600; }
.ascent .bars { width: 35%; min-width: 5rem; }
.ascent .track { position: relative; height: 1.1rem; }
.ascent .bar { position: absolute; top: 0; bottom: 0; min-width: 1px; background: #5e3c99; }
.ascent .bar.negative { background: #e66101; }
.ascent .others .bar { opacity: .5; }
.dark .ascent .bar { background: #b2abd2; }
.dark .ascent .bar.negative { background: #fdb863; }
.ascent .zero { position: absolute; top: -.2rem; bottom: -.2rem; width: 1px;
  background: var(--body-text-color-subdued); }
"""


@dataclass(frozen=True)
class ModelConcept:
    """A concept that a visitor can choose: its name, its stream, its index in the stream."""

    name: str
    stream: str
    index: int

    @property
    def title(self) -> str:
        """Name with the stream, as concepts of two streams may have the same name."""
        return f"{self.name} ({self.stream})"


def model_concepts(config: Any) -> list[ModelConcept]:
    """The global and the spatial concepts of a model, which can be set by hand; `config` is its `AscentViTConfig`."""
    names = concept_names(config)
    return [ModelConcept(name, stream, i) for stream in ("global", "spatial") for i, name in enumerate(names[stream])]


def make_corrections(
    concepts: Sequence[ModelConcept], present: Sequence[int], absent: Sequence[int]
) -> dict[Concept, Correction]:
    """
    Makes corrections for [`~ascent_vit.explanation.intervene`].

    Args:
        concepts: concepts that can be set.
        present: indices in `concepts` of those that are set to present.
        absent: indices in `concepts` of those that are set to absent.

    Raises:
        ValueError: for a concept that is both present and absent.
    """
    both = [concepts[i].title for i in present if i in absent]
    if both:
        raise ValueError(f"{both[0]} is set to both present and absent: take it out of one.")
    chosen = [(i, "present") for i in present] + [(i, "absent") for i in absent]
    return {(concepts[i].stream, concepts[i].name): correction for i, correction in chosen}


def read(path: str | os.PathLike, processor: "ConceptImageProcessor") -> "Image":
    """Reads an image file; raises one `ValueError` that does not say where it lies."""
    try:
        return read_image(path, getattr(processor, "window", None))
    # Pillow raises many kinds of errors, and their texts name files of the server.
    except Exception as error:
        raise ValueError("This file cannot be read as an image: give a complete PNG, JPEG or WebP file.") from error


def explain_both(
    model: "ConceptClassifier",
    processor: "ConceptImageProcessor",
    path: str | os.PathLike,
    corrections: Mapping[Concept, Correction],
) -> CorrectedExplanation:
    """
    Explains an image without and with concepts set by hand; without corrections, both explanations are the same.

    Args:
        model: the concept classifier.
        processor: image processor of the model.
        path: file of the image.
        corrections: concepts to set, as [`~ascent_vit.explanation.intervene`] takes them.

    Raises:
        ValueError: for a file that cannot be read as an image.
    """
    image = read(path, processor)
    if corrections:
        return intervene(model, processor, image, corrections)
    explanation = explain(model, processor, image)
    return CorrectedExplanation(explanation, explanation, {})


def choose_explanations(
    corrected: CorrectedExplanation, label_id: int, other_id: int
) -> tuple[Explanation, Explanation]:
    """
    Chooses the explanations, before and after, of one class, or of one class compared with another.

    Args:
        corrected: explanations of the image.
        label_id: index of the class, or `AUTOMATIC` for the one that is predicted after the corrections.
        other_id: index of the class to compare with, or `AUTOMATIC` for none.

    Raises:
        ValueError: for the same class twice.
    """
    label_id = corrected.after.predicted_id if label_id == AUTOMATIC else label_id
    before, after = (explanation.for_class(label_id) for explanation in (corrected.before, corrected.after))
    if other_id == AUTOMATIC:
        return before, after
    return before.contrast(label_id, other_id), after.contrast(label_id, other_id)


def scores(explanation: Explanation) -> dict[str, float] | str:
    """Probability of each class by its name; of a regression its values, as a text."""
    if explanation.is_regression:
        return explanation.prediction
    return dict(zip(explanation.labels, explanation.scores.tolist(), strict=True))


def outcome(corrected: CorrectedExplanation) -> str:
    """Describes what the corrections did to the prediction, as HTML."""
    if not corrected.corrections:
        return ""
    before, after = corrected.before, corrected.after
    names = [html.escape(explanation.predicted_label) for explanation in (before, after)]
    if before.score_function != "softmax":
        texts = [html.escape(explanation.prediction) for explanation in (before, after)]
        return f"<p>The prediction goes from <b>{texts[0]}</b> to <b>{texts[1]}</b>.</p>"
    if corrected.changes_prediction:
        text = f"The prediction changes from <b>{names[0]}</b> to <b>{names[1]}</b>."
    else:
        text = f"The prediction stays <b>{names[0]}</b>."
    changed = before.score_text(before.predicted_id), after.score_text(before.predicted_id)
    text += f" The probability of {names[0]} goes from {changed[0]} to {changed[1]}."
    return f"<p>{text}</p>"


def alert(error: ValueError) -> str:
    """Describes what is wrong with a visitor's choices, as HTML."""
    return f'<p role="alert">{html.escape(str(error))}</p>'


def bar(value: float, low: float, high: float, least: float = LEAST_SPAN) -> str:
    """Draws a signed bar on a scale from `low` to `high`, which includes 0, `least` long at least, as HTML."""
    span = max(high - low, least)
    zero, start, width = (100 * part / span for part in (-low, min(value, 0) - low, abs(value)))
    sign = "bar negative" if value < 0 else "bar"
    drawn = f'<div class="{sign}" style="left:{start:.2f}%;width:{width:.2f}%"></div>'
    axis = f'<div class="zero" style="left:{zero:.2f}%"></div>'
    return f'<div class="track" aria-hidden="true">{drawn}{axis}</div>'


def row(name: str, values: Sequence[float], decimals: int, drawn: str = "", others: bool = False) -> str:
    """Writes a row of the table, of one concept or of others; `name` and `drawn` are HTML."""
    numbers = "".join(f'<td class="number">{signed(value, decimals)}</td>' for value in values)
    start = '<tr class="others">' if others else "<tr>"
    return f'{start}<th scope="row">{name}</th><td class="bars">{drawn}</td>{numbers}</tr>'


def contributions_table(before: Explanation, after: Explanation, changed: bool) -> str:
    """
    Writes an HTML table of the concepts that moved the score most, the other concepts, the bias and their sum.

    Args:
        before: explanation of the class without corrections.
        after: explanation of the same class with them, which gives the bars.
        changed: whether there are corrections, so that the contributions before them are shown too.
    """
    shown = contribution_rows([after, before], BARS)
    values = [each.contribution for each in shown]
    low, high = min([0.0, *values]), max([0.0, *values])
    decimals = after.decimals

    def numbers(now: float, then: float) -> list[float]:
        return [now, then] if changed else [now]

    rows = []
    for each in shown:
        name = html.escape(each.name) + (f' <span class="soft">{each.stream}</span>' if each.stream else "")
        drawn = bar(each.contribution, low, high, LEAST_SPAN * 10.0 ** (2 - decimals))
        rows.append(row(name, numbers(*each.contributions), decimals, drawn, each.stream is None))
    label, *others = (html.escape(after.labels[index]) for index in after.class_ids)
    if others:
        caption, bias, total = f"Why {label} and not {others[0]}", "difference of biases", "= difference of logits"
    else:
        caption, bias, total = f"What speaks for {label}", "bias of the class", "= logit of the class"
    if after.is_regression:
        caption, bias, total = f"What makes {label}", "bias of the value", "= value"
    sums = row(bias, numbers(after.class_bias, before.class_bias), decimals)
    sums += row(total, numbers(after.logit, before.logit), decimals)
    heads = ["contribution", "before"] if changed else ["contribution"]
    head = "".join(f'<th scope="col" class="number">{name}</th>' for name in heads)
    return (
        f'<table><caption>{caption}</caption><thead><tr><th scope="col">concept</th><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody><tfoot>{sums}</tfoot></table>"
    )


def concept_maps(explanation: Explanation, index: int) -> "Figure | None":
    """
    Draws attention to a spatial concept and its contribution at each place, over the image in grey.

    Args:
        explanation: explanation of a class, or of two classes compared.
        index: index of the concept in its stream, or `AUTOMATIC` for the one that moved the score most.

    Returns:
        The figure, or None for a model without spatial concepts.
    """
    from matplotlib.figure import Figure

    strongest = explanation.top(1, stream="spatial")
    if not strongest:
        return None
    chosen = strongest[0].index if index == AUTOMATIC else index
    attention, added = explanation.patch_attention[chosen], explanation.patch_contributions[chosen]
    width, height = explanation.image.size
    figure = Figure(figsize=(2 * MAP_SIZE, MAP_SIZE * float(np.clip(height / width, 0.4, 1.5))), layout="constrained")
    axes = figure.subplots(1, 2)
    limit = top_of(added)
    scales = (
        ("attention", attention, ATTENTION_COLORS, 0.0, top_of(attention)),
        (explanation.unit, added, CONTRIBUTION_COLORS, -limit, limit),
    )
    for ax, (title, values, colors, low, high) in zip(axes, scales, strict=True):
        drawn = draw_maps([ax], explanation, values[None], colors, low, high)
        add_scale(figure, drawn, [ax], title)
    name = wrapped(explanation.concept_names["spatial"][chosen], 60)
    figure.suptitle(name, fontsize=11, parse_math=False)
    return figure


def uploaded_path(payload: Any) -> str | None:
    """Path of an uploaded file, which is read here: Gradio does not say why it cannot read an image."""
    return None if payload is None else payload.path


def choices(first: str, names: Sequence[str]) -> list[tuple[str, int]]:
    """Choices of a list: names with their indices, after the automatic one, which is called `first`."""
    return [(first, AUTOMATIC), *((name, i) for i, name in enumerate(names))]


def show(
    corrected: CorrectedExplanation | None, label_id: int, other_id: int, index: int
) -> tuple[str, "Figure | None"]:
    """Makes the table and the maps of what a visitor chose, or says what is wrong with the choice."""
    if corrected is None:
        return "", None
    try:
        before, after = choose_explanations(corrected, label_id, other_id)
    except ValueError as error:
        return alert(error), None
    return contributions_table(before, after, bool(corrected.corrections)), concept_maps(after, index)


def add_prediction(
    concepts: Sequence[ModelConcept], examples: Sequence[str | os.PathLike]
) -> tuple[list[gr.components.Component], list[gr.components.Component]]:
    """
    Adds the row of the image and its prediction to the app.

    Returns:
        The inputs, which are the image and the present and absent concepts; and the outputs, which are the predictions
        before and after the changes, and what these changed.
    """
    settable = [(concept.title, i) for i, concept in enumerate(concepts)]
    with gr.Row():
        with gr.Column():
            image = gr.Image(label="Image", sources=["upload", "clipboard"], height=320, elem_id="image")
            # Not a subclass, as Gradio writes a file beside the code of each.
            image.preprocess = uploaded_path  # type: ignore[method-assign,assignment]
            if examples:
                gr.Examples([str(path) for path in examples], image, label="Examples", api_visibility="private")
        with gr.Column():
            with gr.Row():
                before = gr.Label(label="Prediction", num_top_classes=CLASSES, elem_id="before", min_width=200)
                after = gr.Label(
                    label="With your changes", num_top_classes=CLASSES, elem_id="after", min_width=200, visible=False
                )
            changes = gr.HTML(elem_id="outcome", elem_classes="ascent")
            present, absent = (
                gr.Dropdown(settable, value=[], multiselect=True, label=name, elem_id=name.lower())
                for name in ("Present", "Absent")
            )
            gr.HTML(f'<p class="soft">{SET_BY_HAND}</p>', elem_classes="ascent")
    return [image, present, absent], [before, after, changes]


def add_explanation(
    labels: Sequence[str], spatial: Sequence[str], is_regression: bool = False
) -> tuple[list[gr.components.Component], list[gr.components.Component]]:
    """
    Adds the row of the contributions and the maps to the app; of values, which are not compared, without a choice of
    what to compare with.

    Returns:
        The inputs, which are the class, the one to compare with, and the concept to map; and the outputs, which are
        the table and the maps.
    """

    def dropdown(first: str, names: Sequence[str], label: str, elem_id: str, visible: bool = True) -> gr.Dropdown:
        options = choices(first, names)
        return gr.Dropdown(options, value=AUTOMATIC, label=label, elem_id=elem_id, visible=visible)

    with gr.Row():
        with gr.Column():
            with gr.Row():
                first = "the first value" if is_regression else "the predicted class"
                label = dropdown(first, labels, "Explain", "label")
                other = dropdown("no other class", labels, "Compare with", "other", visible=not is_regression)
            table = gr.HTML(elem_id="contributions", elem_classes="ascent")
        with gr.Column(visible=bool(spatial)):
            concept = dropdown("the concept that moves the score most", spatial, "Where in the image", "concept")
            maps = gr.Plot(show_label=False, elem_id="maps", format="png")
            gr.HTML(f'<p class="soft">{MAP_MEANING}</p>', elem_classes="ascent")
    return [label, other, concept], [table, maps]


def on_gpu(function: Callable) -> Callable:
    """Lets a function have a GPU while it runs, on a Space with ZeroGPU, which has the package `spaces`."""
    try:
        import spaces
    except ImportError:
        return function
    return spaces.GPU(function)


def add_tool(model: "ConceptClassifier", processor: "ConceptImageProcessor") -> None:
    """Adds what programs call: an endpoint of Gradio's API, which is a tool of the MCP server too."""
    classifier: Any = ConceptImageClassificationPipeline(model=model, image_processor=processor, device=model.device)

    @on_gpu
    def classified(image: str, num_concepts: int) -> dict[str, Any]:
        return classifier(read(image, processor), top_k=1, top_concepts=num_concepts)[0]

    def explain_image(image: str | None, num_concepts: float) -> dict[str, Any]:
        """
        Classifies an image, and says which human concepts the class score is the sum of.

        Args:
            image: The image to classify, as PNG, JPEG or WebP.
            num_concepts: Number of concepts to return, those that moved the score most.

        Returns:
            The predicted class as label, with its score, its logit, the bias of the class, and the concepts, each with
            its name, its stream (global or spatial), its attention and its contribution to the logit.
        """
        if image is None or not num_concepts >= 1:
            raise gr.Error("An image is needed, and num_concepts must be 1 or more.", print_exception=False)
        try:
            return classified(image, int(num_concepts))
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    # Components without a place on the page: they say what kinds of values the tool takes and gives.
    image = gr.Image(label="image", visible=False)
    image.preprocess = uploaded_path  # type: ignore[method-assign,assignment]
    number = gr.Number(BARS, label="num_concepts", visible=False)
    call = gr.Button("Explain", visible=False)
    call.click(explain_image, [image, number], gr.JSON(label="explanation", visible=False), api_name="explain_image")  # type: ignore[attr-defined]


def build_app(
    model: "ConceptClassifier",
    processor: "ConceptImageProcessor",
    title: str,
    examples: Sequence[str | os.PathLike] = (),
    tool: bool = False,
    index: "ConceptIndex | None" = None,
    guard: "Safeguard | None" = None,
) -> gr.Blocks:
    """
    Builds the app, without starting it.

    Args:
        model (`torch.nn.Module`): An `AscentViTForImageClassification`, also one loaded as remote code.
        processor (`AscentViTImageProcessor`): The model's image processor.
        title (`str`): Title of the app, usually the model's name.
        examples (`Sequence[str | os.PathLike]`, *optional*): Image files that a visitor can choose.
        tool (`bool`, *optional*, defaults to `False`): Whether programs can call the app too, see [`add_tool`].
        index ([`~ascent_vit.cases.ConceptIndex`], *optional*):
            Index that was built with the model, to show similar images.
        guard ([`~ascent_vit.safeguard.Safeguard`], *optional*): The model's guard, for a dialogue about its doubt.

    Raises:
        ValueError: for another kind of model.
    """
    check_model_and_processor(model, processor)
    concepts = model_concepts(model.config)
    spatial = [concept.name for concept in concepts if concept.stream == "spatial"]

    @on_gpu
    def explained(path: str, corrections: Mapping[Concept, Correction]) -> CorrectedExplanation:
        return explain_both(model, processor, path, corrections)

    def run(
        path: str | None, present: list[int], absent: list[int]
    ) -> tuple[CorrectedExplanation | None, Any, Any, str]:
        if path is None:
            return None, None, gr.Label(visible=False), ""
        try:
            corrected = explained(path, make_corrections(concepts, present, absent))
        except ValueError as error:
            return None, None, gr.Label(visible=False), alert(error)
        after = gr.Label(scores(corrected.after), visible=bool(corrected.corrections))
        return corrected, scores(corrected.before), after, outcome(corrected)

    with gr.Blocks(title=title, analytics_enabled=False) as app:
        state = gr.State(None)
        gr.HTML(f"<h1>{html.escape(title)}</h1><p>{HELP}</p>", elem_classes="ascent")
        given, predicted = add_prediction(concepts, examples)
        if guard is not None:
            add_doubt(given[0], on_gpu(lambda path: guard(read(path, processor))))
        is_regression = score_function(model.config) == "none"
        chosen, shown = add_explanation(class_names(model.config), spatial, is_regression)
        gr.HTML(f'<p class="soft">{COMPETITION}</p>', elem_classes="ascent")

        quiet: dict[str, Any] = {
            "trigger_mode": "always_last",
            "show_progress": "minimal",
            "api_visibility": "private",
        }
        # Gradio makes the events of a component while it runs.
        given_changes, chosen_changes = ([part.change for part in parts] for parts in (given, chosen))  # type: ignore[attr-defined]
        ran = gr.on(given_changes, run, given, [state, *predicted], **quiet)
        ran.then(show, [state, *chosen], shown, show_progress="hidden", api_visibility="private")
        gr.on(chosen_changes, show, [state, *chosen], shown, **quiet)
        if index is not None:
            add_similar(state, ran, index, is_regression)
        if tool:
            add_tool(model, processor)
    return app


def launch_app(app: gr.Blocks, port: int | None = None, wait: bool = True, tool: bool = False) -> str:
    """
    Starts the app, for this machine alone unless a Space or the environment variable GRADIO_SERVER_NAME says more.

    Args:
        app: app as [`build_app`] makes it.
        port: port to listen on; by default the first free one from 7860 on.
        wait: whether to return only when the app ends.
        tool: whether programs can call the app too, if it was built so: an MCP server, and pages about the API.

    Returns:
        Local address of the app.

    Raises:
        ValueError: for a port that is taken.
    """
    try:
        _, address, _ = app.launch(
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            mcp_server=tool,
            enable_monitoring=False,
            run_history=False,
            footer_links=["api"] if tool else [],
            max_file_size=MAX_FILE_SIZE,
            theme=gr.themes.Default(font=FONTS, font_mono=MONOSPACE_FONTS),
            css=CSS,
        )
    except OSError as error:
        if port is None:
            raise
        raise ValueError(f"The port {port} cannot be used: another program may have it. Give another.") from error
    print(f"The app runs at {address}. End it with Ctrl-C.", flush=True)
    if wait:
        app.block_thread()
    return address


__all__ = ["build_app", "launch_app"]
