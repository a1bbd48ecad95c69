# SPDX-License-Identifier: Apache-2.0
"""The dialogue of a Space's app: what the model does not know of an image, and what would settle it."""

import html
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import gradio as gr


if TYPE_CHECKING:
    from ascent_vit.safeguard import Doubt

PROMISE = (
    "Of images like the {images:,} that this was calibrated with, the right class is among those named for {share:.4g}"
    " % or more."
)
AFTER_ANSWERS = "After answers, the classes follow from the model's exact sum; no share of right ones is promised."


@dataclass(frozen=True)
class Dialogue:
    """
    Where a dialogue stands.

    Args:
        doubt: What is known now.
        put_off: Number of questions that the visitor is not sure of.
        before: What came before the last answer.
    """

    doubt: "Doubt"
    put_off: int = 0
    before: "Dialogue | None" = None

    @property
    def concept(self) -> str | None:
        """The concept to ask about, None without a question."""
        ask = self.doubt.ask
        return ask[self.put_off].concept if self.put_off < len(ask) else None

    def reply(self, answer: str) -> "Dialogue":
        """What follows after the answer "yes", "no" or "not sure"."""
        if answer == "not sure" or self.concept is None:
            return replace(self, put_off=self.put_off + 1)
        return Dialogue(self.doubt.answer({self.concept: answer}), 0, self)


def describe(dialogue: Dialogue) -> str:
    """Writes what is known, what was answered, the question with both outcomes, and the promise, as HTML."""
    doubt = dialogue.doubt
    names = " or ".join(f"<b>{html.escape(name)}</b>" for name in doubt.labels)
    if doubt.verdict == "decide":
        lines = [f"Decided: {names}."]
    elif doubt.verdict == "abstain":
        lines = [f"<b>I don't know</b>: {names}."]
    else:
        return f"<p>This is <b>not the kind of image that the model knows</b>. The nearest class would be {names}.</p>"
    if doubt.answers:
        given = ((html.escape(name), "yes" if answer else "no") for name, answer in doubt.answers.items())
        lines.append(" ".join(f"{name}: {answer}." for name, answer in given))
    if dialogue.concept is not None:
        question = doubt.ask[dialogue.put_off]
        yes, no = (html.escape(" or ".join(outcome.labels)) for outcome in (question.if_yes, question.if_no))
        lines.append(f"Would settle it: is there <b>{html.escape(question.concept)}</b>? If yes, {yes}; if no, {no}.")
    elif doubt.verdict == "abstain":
        lines.append("There is no further question.")
    facts = doubt.guard.facts
    promise = PROMISE.format(images=facts["images"], share=100 * (1 - facts["alpha"]))
    paragraphs = "".join(f"<p>{line}</p>" for line in lines)
    return f'{paragraphs}<p class="soft">{AFTER_ANSWERS if doubt.answers else promise}</p>'


def add_doubt(image: gr.components.Component, judge: Callable[[str], "Doubt"]) -> None:
    """
    Adds the dialogue to an app, below what has been added so far.

    Args:
        image: Component of the image, which gives a path.
        judge: Function of the path of an image that says what is known of it; ValueError for one that cannot be read.
    """
    state = gr.State(None)
    shown = gr.HTML(elem_id="doubt", elem_classes="ascent")
    with gr.Row():
        buttons = [
            gr.Button(name, size="sm", visible=False, elem_id=f"answer-{name.split()[0].lower()}")
            for name in ("Yes", "No", "Not sure", "Take the last answer back")
        ]

    def show(dialogue: Dialogue | None) -> list[Any]:
        asks = dialogue is not None and dialogue.concept is not None
        back = dialogue is not None and dialogue.before is not None
        visible = [gr.Button(visible=asks)] * 3 + [gr.Button(visible=back)]
        return [dialogue, "" if dialogue is None else describe(dialogue), *visible]

    def start(path: str | None) -> list[Any]:
        try:
            return show(None if path is None else Dialogue(judge(path)))
        except ValueError:
            # The prediction beside it says what is wrong with the image.
            return show(None)

    def act(name: str) -> Callable[[Dialogue | None], list[Any]]:
        if name == "back":
            return lambda dialogue: show(dialogue and dialogue.before)
        return lambda dialogue: show(dialogue and dialogue.reply(name))

    outputs = [state, shown, *buttons]
    quiet: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private"}
    image.change(start, [image], outputs, trigger_mode="always_last", **quiet)  # type: ignore[attr-defined]
    for button, name in zip(buttons, ("yes", "no", "not sure", "back"), strict=True):
        button.click(act(name), [state], outputs, **quiet)  # type: ignore[attr-defined]


__all__ = ["add_doubt"]
