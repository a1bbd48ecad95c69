# SPDX-License-Identifier: Apache-2.0
"""The dialogue on the page of an explanation, in a real Chromium, against the guard's own answers."""

import shutil

import numpy as np
import pytest

from ascent_vit import Safeguard, explain


ATTACK = "<img src=x onerror=alert(1)>"


@pytest.fixture
def open_page(tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium is installed")
    trouble = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])

        def show(explanation, doubt):
            explanation.save(tmp_path / "page.html", doubt=doubt)
            page = browser.new_page(viewport={"width": 1100, "height": 800})
            page.on("console", lambda message: trouble.append(message.text))
            page.on("pageerror", lambda error: trouble.append(str(error)))
            page.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
            page.goto((tmp_path / "page.html").as_uri())
            return page

        yield show
        browser.close()
    assert trouble == []


def check(page, doubt, put_off=0):
    """The page says what the guard says."""
    told = page.inner_text("#verdict")
    names = " or ".join(doubt.labels)
    assert told == (f"Decided: {names}." if doubt.verdict == "decide" else f"I don't know: {names}.")
    if put_off < len(doubt.ask[:2]):
        question = doubt.ask[put_off]
        yes, no = (" or ".join(outcome.labels) for outcome in (question.if_yes, question.if_no))
        expected = f"Would settle it: is there {question.concept}? If yes, {yes}; if no, {no}."
        assert page.text_content("#ask p") == expected


@pytest.mark.slow
def test_the_dialogue_is_the_guards(make_model, make_dataset, make_images, open_page):
    model, processor = make_model(streams={"spatial_concepts": ["beak", "wing", ATTACK, "crest"]})
    guard = Safeguard.fit(model, processor, make_dataset(), alpha=0.2)
    guard.judge.facts["limits"] = dict.fromkeys(guard.judge.facts["limits"], 1e9)
    guard.judge.arrays["thresholds"] = np.full(3, 0.02)
    images = make_images(10, seed=3)
    doubts = guard(images)
    index = next(i for i, doubt in enumerate(doubts) if doubt.verdict == "abstain")
    page, doubt = open_page(explain(model, processor, images[index]), doubts[index]), doubts[index]
    check(page, doubt)
    assert "Of images like the 60" in page.inner_text("#promise") and "80 % or more" in page.inner_text("#promise")
    page.get_by_role("button", name="Not sure").click()
    check(page, doubt, put_off=1)
    page.get_by_role("button", name="Not sure").click()
    assert page.inner_text("#ask p") == "This page has no further question."
    page.reload()
    for answer in ("No", "Yes"):
        if not doubt.ask:
            break
        concept = doubt.ask[0].concept
        page.get_by_role("button", name=answer, exact=True).click()
        before, doubt = doubt, doubt.answer({concept: answer.lower()})
        check(page, doubt)
        assert f"{concept}: {answer.lower()}." in page.text_content("#asked")
        assert "no share of right ones is promised" in page.inner_text("#promise")
    page.get_by_role("button", name="Take the last answer back").click()
    check(page, before)


@pytest.mark.slow
def test_a_decided_and_a_foreign_image_are_said(guard, make_images, open_page):
    image = make_images(1)[0]
    explanation = explain(guard.model, guard.processor, image)
    guard.judge.facts["limits"] = dict.fromkeys(guard.judge.facts["limits"], 1e9)
    guard.judge.arrays["thresholds"] = np.full(3, 0.99)
    page = open_page(explanation, guard(image))
    check(page, guard(image))
    assert page.locator("#ask button").count() == 0
    guard.judge.facts["limits"] = dict.fromkeys(guard.judge.facts["limits"], 1e-9)
    page = open_page(explanation, guard(image))
    assert "not the kind of image that the model knows" in page.inner_text("#verdict")
    assert page.locator("#promise").is_hidden() and page.locator("#ask button").count() == 0
    page = open_page(explanation, None)
    assert page.locator("#doubt").is_hidden()
