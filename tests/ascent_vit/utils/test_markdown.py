# SPDX-License-Identifier: Apache-2.0
"""Names that are Markdown, HTML or YAML stay names in every card and report, read by a real Markdown parser."""

import json
from html.parser import HTMLParser

import pytest
from huggingface_hub import DatasetCard, ModelCard
from PIL import Image

from ascent_vit.data.annotate import Annotations, DetectedConcept
from ascent_vit.data.annotate.dataset import describe
from ascent_vit.data.card import dataset_card
from ascent_vit.data.prepared import PreparedDataset
from ascent_vit.data.schema import concept_features
from ascent_vit.publishing import ModelCardContent
from ascent_vit.publishing.card import model_card
from ascent_vit.publishing.source import PublishOptions
from ascent_vit.publishing.stage import card_content, make_card
from ascent_vit.training.report import report_text
from ascent_vit.utils.markdown import code_span, escape_markdown


ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "[click](javascript:alert(3))",
    "![x](https://evil.example/x.png)",
    "a | b | c",
    "`</code><b>bold</b>`",
    "x\n\n# A heading\n\n- a list",
    "x\n---\nlicense: evil\ntags: [evil]\n---\n",
    "&lt;b&gt; &amp; $x$ ~~y~~ **z** _w_",
    "{{ card_data }} {% for x in y %} \\",
    "</td></tr></table><iframe src=//evil.example>",
    "\u202eevil\u2028line",
]
# What the texts are made of: nothing else may be an element of the page.
ELEMENTS = {
    *("h1", "h2", "p", "a", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"),
    *("pre", "code", "em", "strong", "hr", "img", "br"),
}


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def rendered(text: str) -> Page:
    markdown_it = pytest.importorskip("markdown_it")
    return Page(markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text))


def check(text: str, plain: str, shown: list[str], pictures: int = 0):
    """`text` has the elements that `plain` has, of a content with harmless names, and shows the names."""
    page, expected = rendered(text), rendered(plain)
    assert {tag for tag, _ in page.elements} <= ELEMENTS
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in expected.elements]
    links = [attributes.get("href", attributes.get("src", "")) for tag, attributes in page.elements if tag in "a img"]
    assert not [link for link in links if "evil" in link or link.startswith("javascript")]
    assert sum(tag == "img" for tag, _ in page.elements) == pictures
    words = " ".join(page.text.split())
    for name in shown:
        assert " ".join(name.split()) in words, name


@pytest.mark.parametrize("attack", ATTACKS)
def test_model_card(attack):
    def card(name):
        content = ModelCardContent(
            model_name=name,
            classes=[name, "wren"],
            global_concepts=[name, "day"],
            spatial_concepts=[name, "beak"],
            dataset_name=name,
            repo_id="ann/birds",
            metrics={"accuracy": 0.5},
            split=name,
            seed=0,
            settings={name: name},
        )
        return model_card(content)

    hostile, plain = card(attack), card("name")
    check(hostile.text, plain.text, [attack])
    assert hostile.data.license == "apache-2.0" and hostile.data.tags == plain.data.tags
    assert ModelCard(str(hostile)).data.eval_results[0].dataset_name == attack


@pytest.mark.parametrize("attack", ATTACKS)
def test_records_of_a_run(attack, make_config, tmp_path):
    """What `publish` finds in a folder that somebody else made."""
    config = make_config(global_concepts=["day", "night"], num_labels=2)
    config.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"annotation_coverage": 0.5, "unannotated": "none"}))

    def card(name):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / "README.md").write_text(f"---\n{json.dumps({'license': name})}\n---\n# x\n")
        metrics = {"accuracy": 0.5, "split": name, "seed": name, "dataset": name}
        recipe = {"dataset": name, "learning_rate": name, "backbone": name, "ema_decay": [name]}
        records = {"metrics.json": metrics, "recipe.yaml": recipe}
        options = PublishOptions(dataset_name=name)
        return make_card(tmp_path, "ann/birds", records, str(tmp_path / "data"), options)

    hostile, plain = ModelCard(card(attack)), ModelCard(card("name"))
    check(hostile.text, plain.text, [attack])
    assert hostile.data.license == "apache-2.0"
    assert card_content(tmp_path, "a/b", {"metrics.json": {"seed": attack}}, dataset_name="x").seed is None


@pytest.mark.parametrize("attack", ATTACKS)
def test_dataset_card(attack):
    from datasets import Dataset, DatasetDict

    def card(name):
        features = concept_features([name, "wren"], [name, "day"], [name, "beak"], ["points"])
        row = {"image": Image.new("RGB", (8, 8)), "label": 0, "concepts": [0], "points": {"xy": [], "category": []}}
        rows = Dataset.from_list([row], features=features).add_column(f"by {name}", [1])
        prepared = PreparedDataset(DatasetDict(train=rows), name, "other", "A description.", {name: name})
        return dataset_card(prepared, command="ascent-vit prepare")

    hostile, plain = card(attack), card("name")
    check(hostile.text, plain.text, [attack] if "`" not in attack and "|" not in attack else [])
    again = DatasetCard(str(hostile))
    assert again.data.license == "other" and again.data.pretty_name == attack


@pytest.mark.parametrize("attack", ATTACKS)
def test_annotated_dataset(attack):
    def text(name):
        concept = DetectedConcept(name, name, 0.2)
        counts = {"boxes": {name: 1}, "images_with": {name: 1}, "images": {"train": 1}, "empty": {"train": 0}}
        return describe(Annotations(dataset=None, concepts=[concept], **counts), name, name, name, 0.5)

    check(text(attack), text("name"), [attack])


@pytest.mark.parametrize("attack", ATTACKS)
def test_report_of_a_run(attack):
    def text(name):
        report = {
            "metrics": {"accuracy": 0.5},
            "epochs": [{"epoch": 1, "step": 1, "train_loss": 1.0}],
            "recipe_values": {"name": name, "dataset_options": {name: name}},
            "split": "test",
            "best_epoch": 1,
            "best_metric": "accuracy",
            "best_validation_value": 0.5,
            "recipe": name,
            "dataset": name,
            "steps": 1,
            "history": [],
            "step_plan": {"total_steps": 1},
        }
        return report_text(report)

    check(text(attack), text("name"), [attack], pictures=1)


@pytest.mark.parametrize("attack", ATTACKS)
def test_escaping(attack):
    assert rendered(escape_markdown(attack)).elements == [("p", {})]
    assert [tag for tag, _ in rendered(f"x {code_span(attack)} y").elements] == ["p", "code"]
    assert "\n" not in escape_markdown(attack) + code_span(attack)
