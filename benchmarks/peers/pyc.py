# SPDX-License-Identifier: Apache-2.0
"""PyC's concept bottleneck and concept embedding models, on features of a frozen backbone."""

import logging
import warnings
from typing import Any

import pytorch_lightning as lightning
import torch
import torch_concepts
from features import Split
from pytorch_lightning.callbacks import EarlyStopping
from torch import Tensor
from torch.utils.data import DataLoader
from torch_concepts import nn as pyc


MODELS = {"cbm": pyc.ConceptBottleneckModel, "cem": pyc.ConceptEmbeddingModel}
TASK = "class"


class Override(pyc.ConceptInterventionStrategy):
    """Sets the logits of concepts by `values`, 1 for present and 0 for absent; leaves those that are NaN there."""

    # Of a concept that is certain; the sigmoid of it is 1 to 2e-9.
    LOGIT = 20.0

    def __init__(self, values: Tensor):
        super().__init__()
        self.values = values

    def forward(self, logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return torch.where(self.values.isnan(), logits, (2 * self.values - 1) * self.LOGIT)


class PycPeer:
    """
    A trained model of PyC.

    Args:
        model: the model, in evaluation mode.
        features: name of the features that it takes, as [`Split.pooled`].
    """

    def __init__(self, model: Any, features: str):
        self.model, self.features = model, features
        self.names = model.intermediate_concept_names

    def __call__(self, features: Tensor, override: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Class logits `(B, K)` and probabilities of the concepts `(B, G)`, some of them given; NaN is not given."""
        query = [*self.names, TASK]
        if override is None:
            logits = self.model(query=query, input=features).logits
        else:
            with pyc.intervention(self.model, Override(override), pyc.UniformPolicy(), self.names):
                logits = self.model(query=query, input=features).logits
        return logits[TASK].tensor, logits[self.names].tensor.sigmoid()

    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)


def batches(split: Split, features: str, annotations: Any, batch_size: int, generator: Any = None) -> DataLoader:
    values = torch.cat([split.concepts, split.labels[:, None].float()], dim=1)
    inputs = split.pooled(features)

    def collate(rows: list[int]) -> dict[str, Any]:
        return {
            "inputs": {"x": inputs[rows]},
            "concepts": {"c": torch_concepts.AnnotatedTensor(values[rows], annotations.to_concept_space())},
        }

    return DataLoader(
        range(len(inputs)), batch_size, shuffle=generator is not None, generator=generator, collate_fn=collate
    )


def train_pyc(
    splits: dict[str, Split],
    seed: int,
    kind: str = "cbm",
    features: str = "cls",
    learning_rate: float = 7.5e-4,
    weight_decay: float = 0.01,
    concept_weight: float = 0.8,
    max_epochs: int = 200,
    patience: int | None = 20,
    batch_size: int = 32,
    independent: bool = False,
    num_views: int = 4,
    **options: Any,
) -> tuple[PycPeer, dict[str, Any]]:
    """
    Trains by Lightning, as PyC's own experiments do; the defaults are theirs.

    Args:
        splits: features by split; "train" and "validation" are used.
        seed: random seed of weights and order.
        kind: "cbm" or "cem".
        features: name of the features, as [`Split.pooled`].
        concept_weight: weight of the concepts' loss; that of the class has the rest to 1.
        max_epochs: number of passes over as many rows as there are images, at most.
        patience: number of such passes without a smaller loss on validation that end the training; None for never.
        independent: whether classes are learned from true concepts.
        num_views: number of rows of an image in "train", one of which is drawn for each pass.
        options: arguments of the model.

    Returns:
        The peer, and `steps`.
    """
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    lightning.seed_everything(seed, verbose=False)
    train = splits["train"]
    names = [f"concept {i}" for i in range(train.concepts.shape[1])]
    classes = int(train.labels.max()) + 1
    annotations = torch_concepts.Annotations(
        labels=[*names, TASK],
        types=["binary"] * len(names) + ["categorical"],
        cardinalities=[1] * len(names) + [classes],
    )
    loss = pyc.WeightedConceptLoss(
        binary=torch.nn.BCEWithLogitsLoss(),
        categorical=torch.nn.CrossEntropyLoss(),
        concept_weight=concept_weight,
        task_weight=1 - concept_weight,
        task_names=[TASK],
    )
    model = MODELS[kind](
        input_size=train.pooled(features).shape[1],
        annotations=annotations,
        task_names=[TASK],
        train_inference=pyc.IndependentInference if independent else None,
        lightning=True,
        loss=loss,
        optim_class=torch.optim.AdamW,
        optim_kwargs={"lr": learning_rate, "weight_decay": weight_decay},
        **options,
    )
    # A pass over all rows is as many epochs as there are views.
    callbacks = [] if patience is None else [EarlyStopping("val_loss", patience=patience)]
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        limit_train_batches=1 / num_views,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        # Of workers, and of batches that are not logged.
        warnings.simplefilter("ignore")
        trainer.fit(
            model,
            batches(train, features, annotations, batch_size, torch.Generator().manual_seed(seed)),
            batches(splits["validation"], features, annotations, 128),
        )
    return PycPeer(model.eval(), features), {"steps": trainer.global_step}
