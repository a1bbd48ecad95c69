# SPDX-License-Identifier: Apache-2.0
"""Similar images in a Space's app: what the model sees as it sees the visitor's image."""

import base64
import html
import io
from typing import TYPE_CHECKING, Any

import gradio as gr


if TYPE_CHECKING:
    from ascent_vit.cases import Case, ConceptIndex
    from ascent_vit.explanation import CorrectedExplanation

SIMILAR = 5
KINDS = [("the concepts that made the score", "contributions"), ("the attention to concepts", "attention")]
CLASSES: dict[str, bool | None] = {"of any class": None, "of the predicted class": True, "of other classes": False}
MEANING = (
    "Images of {name} that the model sees as it sees this one. Similarity is the cosine of what is compared, 1 at "
    "most; it is not a probability."
)


def picture(case: "Case") -> str:
    """Draws the thumbnail of a case, if there is one, as HTML."""
    if case.thumbnail is None:
        return ""
    buffer = io.BytesIO()
    case.thumbnail.convert("RGB").save(buffer, "JPEG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="" src="data:image/jpeg;base64,{data}" style="max-height:6rem">'


def similar_table(cases: "list[Case]") -> str:
    """Writes an HTML table of similar images, the most similar first."""
    if not cases:
        return "<p>The index has no such image.</p>"
    rows = [
        f"<tr><td>{picture(case)}</td><th scope='row'>{html.escape(case.label or 'no label')}</th>"
        f"<td>{html.escape(case.prediction)}</td><td class='number'>{case.score:.3f}</td></tr>"
        for case in cases
    ]
    heads = "<th></th><th scope='col'>class</th><th scope='col'>predicted</th>"
    head = f"<thead><tr>{heads}<th scope='col' class='number'>similarity</th></tr></thead>"
    return f"<table><caption>Similar images</caption>{head}<tbody>{''.join(rows)}</tbody></table>"


def add_similar(state: gr.State, ran: Any, index: "ConceptIndex", is_regression: bool = False) -> None:
    """
    Adds similar images to an app, below what has been added so far.

    Args:
        state: The explanations of the visitor's image, a `CorrectedExplanation` or None.
        ran: Event after which they are there.
        index: Index that was built with the app's model.
        is_regression: Whether the model predicts values, which have no classes to choose by.
    """

    def show(corrected: "CorrectedExplanation | None", by: Any, which: str) -> str:
        if corrected is None:
            return ""
        return similar_table(index.similar(corrected.before, SIMILAR, by, CLASSES[which]))

    with gr.Row():
        by = gr.Dropdown(KINDS, value="contributions", label="Similar by", elem_id="similar-by")
        which = gr.Dropdown(list(CLASSES), label="Images", elem_id="similar-class", visible=not is_regression)
    table = gr.HTML(elem_id="similar", elem_classes="ascent")
    name = html.escape(index.facts["dataset"]["name"] or "its dataset")
    gr.HTML(f'<p class="soft">{MEANING.format(name=name)}</p>', elem_classes="ascent")

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    ran.then(show, [state, by, which], table, **quiet)
    gr.on([by.change, which.change], show, [state, by, which], table, trigger_mode="always_last", **quiet)  # type: ignore[attr-defined]


__all__ = ["add_similar", "similar_table"]
