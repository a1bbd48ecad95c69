# SPDX-License-Identifier: Apache-2.0
"""
What a model does not know of an image, and which answers would settle it; needs numpy alone, and travels with exports.

Notation: A heads, G global, S spatial concepts, K classes, N patches, T tokens: 1 of the global stream, N of the
spatial one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


DECIDE, ABSTAIN, FOREIGN = "decide", "abstain", "not this kind of image"
ANSWERS = {True: True, False: False, "yes": True, "no": False}
TINY = float(np.finfo(np.float32).tiny)
# What another runtime may differ in, of images at a limit.
ROUNDING = 1e-5
# Attention below this is as good as none where attention is compared in powers of ten.
LEAST_ATTENTION = 1e-4

# Numbers in safetensors files, which are written little-endian.
DTYPES = {"F32": "<f4", "F64": "<f8"}


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a safetensors file of floats: the length of a header, the header as JSON, the numbers."""
    data = Path(path).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        values = np.frombuffer(data[start + first : start + last], DTYPES[entry["dtype"]])
        arrays[name] = values.reshape(entry["shape"])
    return arrays


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits `(..., K)`, float64."""
    powers = np.exp(logits - logits.max(-1, keepdims=True), dtype=np.float64)
    return powers / powers.sum(-1, keepdims=True)


def attention_features(streams: list[np.ndarray]) -> np.ndarray:
    """
    What an image is compared with others by: the logarithms of its attention to each concept, of length 1.

    Args:
        streams: Attention of each stream, the mean over heads, `(T, C)`; each token counts by what it attends.

    Returns:
        `(sum of C,)`, float64.
    """
    pooled = [attention.sum(0) / max(np.minimum(attention.sum(1), 1).sum(), 1) for attention in streams]
    features = np.log(np.concatenate(pooled).astype(np.float64) + LEAST_ATTENTION)
    return features / np.linalg.norm(features)


def neighbour_distance(features: np.ndarray, reference: np.ndarray, neighbours: int) -> float:
    """Distance of features `(F,)` to the last of their nearest `neighbours` among the reference `(n, F)`."""
    distances = np.linalg.norm(reference - features, axis=1)
    return float(np.partition(distances, neighbours - 1)[neighbours - 1])


def override_attention(attention: np.ndarray, values: np.ndarray, gated: bool) -> np.ndarray:
    """
    Sets attention by hand, as the overrides of the model's forward do it.

    Args:
        attention: Attention of each head, `(..., A, T, C)`.
        values: Attention to use, `(..., T, C)`, NaN = left to the model.
        gated: Whether attention may sum to less than 1 at a token.
    """
    values = values[..., None, :, :]
    given = ~np.isnan(values)
    values = np.where(given, values, 0)
    complete = given.all(-1, keepdims=True)
    values = np.where(complete, values, values / np.maximum(values.sum(-1, keepdims=True), 1))
    remainder = np.maximum(1 - values.sum(-1, keepdims=True), 0)
    others = np.where(given, 0, attention)
    rest = others.sum(-1, keepdims=True) + none_of(attention, gated)
    others = others * (remainder / np.maximum(rest, TINY))
    return np.where(given.any(-1, keepdims=True), values + others, attention)


def none_of(attention: np.ndarray, gated: bool) -> np.ndarray:
    """What attention `(..., C)` leaves for "none of these", `(..., 1)`."""
    total = attention.sum(-1, keepdims=True)
    return np.maximum(1 - total, 0) if gated else np.zeros_like(total)


def voices(attention: np.ndarray) -> np.ndarray:
    """How much the tokens of `(..., A, T, C)` count in the class scores, `(..., T)`: what they attend, 1 at most."""
    return np.minimum(attention.sum(-1).mean(-2), 1)


@dataclass(frozen=True, eq=False)
class Stream:
    """
    A stream of concepts of one image: its share of the class scores, with any concepts set by hand.

    Args:
        attention: Attention of each head by the model itself, `(A, T, C)`.
        table: What each head adds where all its attention is to one concept, `(A, C, K)`.
        gated: Whether attention may sum to less than 1 at a token.
        present: Attention to a concept that is said to be there, at the tokens that attend to it most.
        tokens: Number of these tokens.
    """

    attention: np.ndarray
    table: np.ndarray
    gated: bool
    present: float
    tokens: int

    @property
    def places(self) -> np.ndarray:
        """The tokens that attend most to each concept, `(C, tokens)`."""
        return np.argsort(-self.attention.mean(0), 0, kind="stable")[: self.tokens].T

    def values(self, answers: Mapping[int, bool]) -> np.ndarray:
        """Override of the model's forward for answers by a concept's index, `(T, C)`, NaN = left to the model."""
        values = np.full(self.attention.shape[1:], np.nan)
        for index, answer in answers.items():
            if answer:
                values[self.places[index], index] = self.present
            else:
                values[:, index] = 0.0
        return values

    def scores(self, pooled: np.ndarray, loudness: np.ndarray) -> np.ndarray:
        """Class scores `(..., K)` of attention summed over tokens, `(..., A, C)`; their `loudness` is `(..., T)`."""
        pooled = pooled / np.maximum(loudness.sum(-1), 1)[..., None, None]
        return np.tensordot(pooled, self.table, axes=2)

    def scores_of(self, attention: np.ndarray) -> np.ndarray:
        """Class scores `(..., K)` of attention `(..., A, T, C)`."""
        return self.scores(attention.sum(-2), voices(attention))

    def scores_if_present(self, values: np.ndarray) -> np.ndarray:
        """Class scores `(C, K)` if each concept were said to be there in turn, beside what `values` `(T, C)` set."""
        now = override_attention(self.attention, values, self.gated)
        total, loudness, scores = now.sum(1), voices(now), []
        for index, places in enumerate(self.places):
            changed, louder = values[places], loudness.copy()
            changed[:, index] = self.present
            after = override_attention(self.attention[:, places], changed, self.gated)
            louder[places] = voices(after)
            scores.append(self.scores(total - now[:, places].sum(1) + after.sum(1), louder))
        return np.array(scores)

    def scores_if_absent(self, values: np.ndarray) -> np.ndarray:
        """Class scores `(C, K)` if each concept were said to be nowhere in turn, beside what `values` `(T, C)` set."""
        given = ~np.isnan(values)
        kept = np.where(given, values, 0)
        # With the absent concept, all of them may be set: then they are used as they are.
        complete = given.sum(1) + ~given.T == values.shape[1]  # (C, T)
        kept = np.where(complete[..., None], kept, kept / np.maximum(kept.sum(1, keepdims=True), 1))  # (C, T, C)
        remainder = np.maximum(1 - kept.sum(-1), 0)
        others = np.where(given, 0, self.attention)
        rest = others.sum(-1) + none_of(self.attention, self.gated)[..., 0]  # (A, T)
        factors = remainder[:, None] / np.maximum(rest - others.transpose(2, 0, 1), TINY)  # (C, A, T)
        pooled = np.einsum("cat,atd->cad", factors, others, optimize=True) + kept.sum(1)[:, None]
        left = factors * (others.sum(-1) - others.transpose(2, 0, 1)) + kept.sum(-1)[:, None]
        numbers = np.arange(values.shape[1])
        pooled[numbers, :, numbers] = 0
        return self.scores(pooled, np.minimum(left.mean(1), 1))


@dataclass(frozen=True)
class Outcome:
    """
    What an answer leads to.

    Args:
        labels: Prediction set, the most probable class first.
        decision: The class that is decided on, None where the set has several.
    """

    labels: list[str]
    decision: str | None


@dataclass(frozen=True)
class Question:
    """
    A concept to ask about.

    Args:
        concept: Name of the concept.
        probability: Probability that it is there, as far as the model knows.
        if_yes: What follows if it is there.
        if_no: What follows if it is not.
        expected_size: Classes that the set is expected to have after the answer.
    """

    concept: str
    probability: float
    if_yes: Outcome
    if_no: Outcome
    expected_size: float


@dataclass(frozen=True, eq=False)
class Doubt:
    """
    What a model knows of one image, and what it does not.

    Args:
        verdict: `"decide"`, `"abstain"` or `"not this kind of image"`.
        labels: Prediction set, the most probable class first; never empty.
        probabilities: Calibrated probabilities of all classes, `(K,)`.
        strangeness: Of each sign that an image is of another kind, how far it is, 1 being the limit.
        answers: Answers so far, by the concept's name.
        ask: Questions whose answers are expected to shrink the set most, the best first; empty unless it abstains.
        guard: What judged.
        outputs: The model's outputs for the image.
    """

    verdict: str
    labels: list[str]
    probabilities: np.ndarray
    strangeness: dict[str, float]
    answers: dict[str, bool]
    ask: list[Question]
    guard: "Judge" = field(repr=False)
    outputs: dict[str, np.ndarray] = field(repr=False)

    @property
    def decision(self) -> str | None:
        """The class that is decided on, None without a decision."""
        return self.labels[0] if self.verdict == DECIDE else None

    def answer(self, answers: Mapping[str, bool | str]) -> "Doubt":
        """
        Continues the dialogue; the model does not run again.

        Args:
            answers: Whether concepts are there, True, False, `"yes"` or `"no"`, by name; they replace earlier ones.

        Raises:
            ValueError: for a concept that cannot be set, or another answer.
        """
        return self.guard.judge(self.outputs, self.answers | self.guard.read_answers(answers))

    def __str__(self) -> str:
        names = " or ".join(self.labels)
        if self.verdict == FOREIGN:
            return f"This is not the kind of image that the model knows (the nearest class is {self.labels[0]})."
        if self.verdict == DECIDE:
            return f"{names}."
        lines = [f"I don't know: {names}."]
        for question in self.ask:
            yes, no = (" or ".join(outcome.labels) for outcome in (question.if_yes, question.if_no))
            lines.append(f"  {question.concept}? If yes, {yes}; if no, {no}.")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, ready for JSON."""
        return {
            "verdict": self.verdict,
            "labels": self.labels,
            "probabilities": [float(self.probabilities[self.guard.classes.index(name)]) for name in self.labels],
            "strangeness": self.strangeness,
            "answers": self.answers,
            "ask": [vars(q) | {"if_yes": vars(q.if_yes), "if_no": vars(q.if_no)} for q in self.ask],
        }

    def tree(self, depth: int = 3, questions: int = 2) -> dict[str, Any]:
        """
        The dialogue as plain data for a page without Python: what follows after each of up to `depth` answers, where
        each time there are so many `questions` to choose from. Without Python, nothing else can be asked.
        """
        ask = self.ask[:questions] if depth else []
        branches: dict[str, dict[str, Any]] = {}
        for question in ask:
            branches[question.concept] = {}
            for name, answer in (("yes", True), ("no", False)):
                answers = self.answers | {question.concept: answer}
                after = self.guard.judge(self.outputs, answers, questions if depth > 1 else 0)
                branches[question.concept][name] = after.tree(depth - 1, questions)
        facts = {"alpha": self.guard.facts["alpha"], "images": self.guard.facts["images"]}
        return self.to_dict() | facts | {"ask": self.to_dict()["ask"][: len(ask)], "then": branches}


class Judge:
    """
    Decides, abstains, or says that an image is of another kind, from a model's outputs.

    Args:
        facts: Content of `guard.json`.
        arrays: Arrays of `guard.safetensors`: `thresholds` `(K,)`, the least probability with which a class is in the
            set, alpha at most; `reference` `(n, F)`, features of calibration images; `global_table` `(A, G, K)` and
            `spatial_table` `(A, S, K)`, contributions of a head's whole attention.
    """

    def __init__(self, facts: dict[str, Any], arrays: dict[str, np.ndarray]):
        self.facts, self.arrays = facts, arrays
        self.classes: list[str] = facts["classes"]
        self.streams = [name for name in ("global", "spatial") if facts["concepts"][name]]
        self.concepts = list(dict.fromkeys(name for stream in self.streams for name in facts["concepts"][stream]))

    @classmethod
    def load(cls, folder: str | Path) -> "Judge":
        """Reads `guard.json` and `guard.safetensors` of a folder."""
        facts = json.loads(Path(folder, "guard.json").read_text(encoding="utf-8"))
        return cls(facts, read_tensors(Path(folder, "guard.safetensors")))

    def read_answers(self, answers: Mapping[str, bool | str]) -> dict[str, bool]:
        """Returns answers as bools, or raises ValueError for a concept or an answer that there is not."""
        for name, answer in answers.items():
            if name not in self.concepts:
                raise ValueError(f"The model has no global or spatial concept {name!r} to answer about.")
            if not isinstance(answer, bool | str) or answer not in ANSWERS:
                raise ValueError(f"The answer about {name!r} is True, False, 'yes' or 'no'; got {answer!r}.")
        return {name: ANSWERS[answer] for name, answer in answers.items()}

    def read_streams(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Stream]:
        """The streams of one image by the model's outputs: attention of each head, `(A, G)` and `(A, N, S)`."""
        streams = {}
        for name in self.streams:
            attention = np.asarray(outputs[f"{name}_concept_attention_heads"], dtype=np.float64)
            attention = attention.reshape(len(attention), -1, attention.shape[-1])
            table = np.asarray(self.arrays[f"{name}_table"], dtype=np.float64)
            facts = self.facts["present"][name]
            streams[name] = Stream(attention, table, self.facts["gated"], facts["attention"], facts["tokens"])
        return streams

    def overrides(self, outputs: Mapping[str, np.ndarray], answers: Mapping[str, bool]) -> dict[str, np.ndarray]:
        """What answers set in each stream `(T, C)`, as overrides of the model's forward, NaN = left to the model."""
        streams = self.read_streams(outputs)
        return {name: stream.values(self._places(name, answers)) for name, stream in streams.items()}

    def _places(self, stream: str, answers: Mapping[str, bool]) -> dict[int, bool]:
        names = self.facts["concepts"][stream]
        return {names.index(name): answer for name, answer in answers.items() if name in names}

    def strangeness(self, streams: Mapping[str, Stream]) -> dict[str, float]:
        """Of each sign that an image is of another kind, its size, 1 at the limit."""
        attention = {name: stream.attention.mean(0) for name, stream in streams.items()}
        features = attention_features(list(attention.values()))
        signs = {
            "features": neighbour_distance(features, self.arrays["reference"], self.facts["neighbours"]),
            "attention": nowhere(attention),
        }
        return {name: value / max(self.facts["limits"][name], TINY) for name, value in signs.items()}

    def prediction_set(self, logits: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Calibrated probabilities `(K,)`, and the classes above their thresholds with the most probable one."""
        probabilities = softmax(np.asarray(logits, dtype=np.float64) / self.facts["temperature"])
        inside = probabilities >= self.arrays["thresholds"]
        inside[probabilities.argmax()] = True
        ranked = np.argsort(-probabilities, kind="stable")
        return probabilities, [self.classes[index] for index in ranked if inside[index]]

    def judge(
        self, outputs: Mapping[str, np.ndarray], answers: Mapping[str, bool | str] | None = None, questions: int = 3
    ) -> Doubt:
        """
        Judges one image.

        Args:
            outputs: The model's outputs for it: `logits` `(K,)`, `global_concept_attention_heads` `(A, G)` and
                `spatial_concept_attention_heads` `(A, N, S)`.
            answers: Whether concepts are there, by name.
            questions: Number of questions to propose.
        """
        known = self.read_answers(answers or {})
        streams = self.read_streams(outputs)
        values = {name: stream.values(self._places(name, known)) for name, stream in streams.items()}
        logits, after = np.asarray(outputs["logits"], dtype=np.float64), {}
        for name, stream in streams.items():
            after[name] = override_attention(stream.attention, values[name], stream.gated)
            logits = logits + stream.scores_of(after[name]) - stream.scores_of(stream.attention)
        probabilities, labels = self.prediction_set(logits)
        strangeness = self.strangeness(streams)
        verdict = DECIDE if len(labels) == 1 else ABSTAIN
        if max(strangeness.values()) > 1 + ROUNDING:
            verdict = FOREIGN
        ask = []
        if verdict == ABSTAIN and questions:
            ask = self.questions(streams, values, after, logits, known)[:questions]
        return Doubt(verdict, labels, probabilities, strangeness, known, ask, self, dict(outputs))

    def questions(
        self,
        streams: Mapping[str, Stream],
        values: Mapping[str, np.ndarray],
        after: Mapping[str, np.ndarray],
        logits: np.ndarray,
        answers: Mapping[str, bool],
    ) -> list[Question]:
        """
        Questions about all concepts without an answer, the one that leaves the fewest classes expected first, of
        several that leave as many the one after which the classes are the surest.
        """
        changes = {}
        for name, stream in streams.items():
            now = stream.scores_of(after[name])
            absent, present = stream.scores_if_absent(values[name]), stream.scores_if_present(values[name])
            changes[name] = [absent - now, present - now]
        ranked = []
        for concept in self.concepts:
            if concept in answers:
                continue
            places = {
                name: self.facts["concepts"][name].index(concept)
                for name in streams
                if concept in self.facts["concepts"][name]
            }
            name, index = next(iter(places.items()))
            likely = self.presence(name, after[name].mean(0)[:, index].max())
            outcomes, size, unsure = [], 0.0, 0.0
            for answer, weight in ((0, 1 - likely), (1, likely)):
                change = sum(changes[stream][answer][place] for stream, place in places.items())
                probabilities, labels = self.prediction_set(logits + change)
                outcomes.append(Outcome(labels, labels[0] if len(labels) == 1 else None))
                size += weight * len(labels)
                unsure -= weight * float((probabilities * np.log(np.maximum(probabilities, TINY))).sum())
            ranked.append((size, unsure, Question(concept, likely, outcomes[1], outcomes[0], size)))
        return [question for _, _, question in sorted(ranked, key=lambda item: item[:2])]

    def presence(self, stream: str, attention: float) -> float:
        """Probability that a concept is there, by the greatest attention to it at any token."""
        slope, bias = self.facts["presence"][stream]
        return float(1 / (1 + np.exp(-(slope * np.log(attention + LEAST_ATTENTION) + bias))))


def nowhere(attention: Mapping[str, np.ndarray]) -> float:
    """
    How much of attention `(T, C)` by stream goes nowhere: the share that is not to the strongest concept of its token,
    mean over streams. Where less is attended than one token could, what is left to "none" is such a share too.
    """
    return float(np.mean([1 - values.max(1).sum() / max(values.sum(), 1) for values in attention.values()]))


__all__ = ["Doubt", "Judge", "Outcome", "Question", "Stream"]
