# Copyright 2026 The ASCENT-ViT project. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""ASCENT-ViT model configuration"""

import copy
import numbers
import os
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from .backbones_ascent_vit import BackboneFacts, backbone_facts
from .concept_targets_ascent_vit import LARGEST_COUNT, pair
from .edits_ascent_vit import read_edits


# The Concept Transformer's selection for CUB-200-2011 (Rigotti et al., ICLR 2022), which the paper uses too.
CUB_GLOBAL_CONCEPTS = 13
CUB_SPATIAL_CONCEPTS = 95

# Strides of the convolutional pyramid's levels, finest first.
PYRAMID_STRIDES = (8, 16, 32)

# Where the Auto classes find the code in a saved folder.
AUTO_MAP = {
    "AutoConfig": "configuration_ascent_vit.AscentViTConfig",
    "AutoModel": "modeling_ascent_vit.AscentViTModel",
    "AutoModelForImageClassification": "modeling_ascent_vit.AscentViTForImageClassification",
}

# Pipelines of the code that travels with a model, as transformers finds them in config.json.
CUSTOM_PIPELINES = {
    "concept-image-classification": {
        "impl": "concept_pipeline_ascent_vit.ConceptImageClassificationPipeline",
        "pt": ["AutoModelForImageClassification"],
        "type": "image",
    }
}

# What the fields may be at most: beyond, weights overflow float32, and tensors fill the memory.
LARGEST_NUMBER = 1e6
LARGEST_FUSION_POINTS = 1024
LARGEST_CHANNELS = 8192

PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


def _is_count(number: Any) -> bool:
    is_whole = isinstance(number, numbers.Integral) and not isinstance(number, bool)
    return is_whole and 0 <= int(number) <= LARGEST_COUNT


def _check_sides(name: str, size: Any):
    """Raises one `ValueError` where a size is not one positive whole number or two."""
    sides: tuple[Any, ...] = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"backbone_config.{name} must be a positive int or two, height first; got {size!r}.")


@strict
class AscentViTConfig(PreTrainedConfig):
    r"""
    Configuration of an [`AscentViTForImageClassification`]: a vision backbone, a convolutional pyramid fused into its
    patch tokens by deformable attention, and a head that classifies through attention to named concepts
    (Sinha, Xiong and Zhang, "ASCENT-ViT", IJCAI 2025, https://huggingface.co/papers/2501.09221).

    Without any concept named or numbered it has the paper's shape for CUB-200-2011, 13 global and 95 spatial concepts.
    As soon as one stream is named or numbered, the others have no concepts.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*, defaults to a ViT-B/16 at 224 pixels):
            Configuration of the backbone: any vision transformer that `AutoModel` builds and that gives one token per
            patch, or Swin, Hiera and PVT v2, whose patches are then the cells of their last stage. A `dict` needs
            `model_type`.
        global_concepts (`list[str]`, *optional*):
            Names of the concepts that are attended from the whole image, in the order of the attention's columns.
        spatial_concepts (`list[str]`, *optional*):
            Names of the concepts that are attended from each patch, in the order of the attention's columns.
        num_global_concepts (`int`, *optional*):
            Number of global concepts with generic names, instead of `global_concepts`.
        num_spatial_concepts (`int`, *optional*):
            Number of spatial concepts with generic names, instead of `spatial_concepts`.
        num_unsupervised_concepts (`int`, *optional*, defaults to 0):
            Number of global concepts that are learned without targets, in a stream of their own.
        psi (`float`, *optional*, defaults to 1.0):
            Weight of the pyramid in the fused patch tokens.
        fusion_heads (`int`, *optional*, defaults to 8):
            Heads of the deformable attention; divides its width.
        fusion_points (`int`, *optional*, defaults to 4):
            Points each head looks at per level.
        fusion_levels (`int`, *optional*, defaults to 3):
            Levels of the pyramid, at 1/8, 1/16 and 1/32 of the image, finest first. 0 builds no pyramid, which is the
            Concept Transformer (Rigotti et al., ICLR 2022).
        fusion_hidden_size (`int`, *optional*):
            Width of the pyramid's levels and of what the fusion samples from them; by default the backbone's hidden size
            (the paper). A smaller one saves most of the fusion's products on large backbones.
        shifted_fusion (`bool`, *optional*, defaults to `False`):
            For weights trained with the authors' code, which takes the CLS token for patch 1: the fusion's queries are
            CLS and patches 1 to N - 1, at the places of patches 1 to N. The last patch is not fused, and the global
            and unsupervised streams look at the fused CLS token. Needs a backbone with one prefix token.
        concept_attention_heads (`int`, *optional*, defaults to 2):
            Heads of the attention to concepts; divides the hidden size.
        token_dropout (`float`, *optional*, defaults to 0.0):
            Dropout probability of the tokens that look at concepts, from 0 to below 1. A head on a frozen backbone and few
            images fits them by heart without.
        correction_rate (`float`, *optional*, defaults to 0.0):
            Probability that class scores of a training image are those of a person's corrections: of its annotated concepts
            some, drawn anew each time, are set to the annotation, as an override does. Without, class scores may come to
            need what attention holds beside the concepts' names, and corrections make them worse.
        concept_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight lambda of the alignment term in the loss.
        entropy_loss_weight (`float`, *optional*, defaults to 0.5):
            Weight mu of the entropy term in the loss.
        label_smoothing (`float`, *optional*, defaults to 0.0):
            Share of a class label that cross-entropy spreads evenly over all classes, from 0 to below 1. `Trainer`'s
            `label_smoothing_factor` would take the place of the whole loss, and concepts would not be supervised.
        class_weights (`list[float]`, *optional*):
            Weight of each class in the cross-entropy, whose mean stays that over images.
        alignment_loss (`"mse"` or `"kl"`, *optional*, defaults to `"mse"`):
            Alignment between target and attention: squared error (the paper) or cross-entropy.
        global_token (`"cls"`, `"cls_mean"` or `"pool"`, *optional*, defaults to `"cls"`):
            Query of the global and unsupervised streams: the CLS token, its sum with the mean of the fused patches, or
            a learned attention pooling over CLS and fused patches. A backbone without CLS token uses the mean of the
            fused patches in its place.
        none_concept (`bool`, *optional*, defaults to `False`):
            Whether the global and spatial streams have a gate, `g = sigmoid(w . token + b)`: a token says first whether
            there is any of the stream's concepts, then which. It is not counted as a concept; attention rows sum to g,
            at most 1, and tokens that show none of the concepts contribute nothing. To learn it needs to be told where
            there is none: rows of zeros in the targets (the image processor's `unannotated="none"`).
        concept_parts (`dict[str, list[str]]`, *optional*):
            Names of spatial concepts by the part that they are of, such as `{"bill": ["bill red", "bill hooked"]}`: where
            places are learned from lists of what is in each image, concepts of a part share them. A concept may be of
            several parts; one of none is a part by itself.
        concept_edits (`list[dict]`, *optional*):
            Terms of the exact sum that were removed or scaled after training, each by its `class` (None for all), `concept`,
            `stream` and `factor`. [`~AscentViTForImageClassification.edit_concepts`] writes it, and the factors
            themselves are in the weights.
        pyramid_norm (`"batch"` or `"group"`, *optional*, defaults to `"batch"`):
            Normalisation in the pyramid. `"group"` makes a batch equal to its parts.
        pyramid_stem (`"conv"` or `"patch"`, *optional*, defaults to `"conv"`):
            What brings the image to 1/4 of its size, below the pyramid: three convolutions and a pooling (the paper),
            or one convolution of 4x4 pixels at stride 4, which is most of the pyramid's cost saved.
        pyramid_channels (`list[int]`, *optional*, defaults to `[64, 128, 256, 256]`):
            Channels of the stem and of the levels at 1/8, 1/16 and 1/32.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the normal that initialises the pyramid's convolutions, and of the truncated normals that
            initialise linear layers and level embeddings.

    Raises:
        ValueError: for a backbone that cannot work, a head count that does not divide the hidden size, a stream with
            one concept and no "none", repeated names, no stream at all, or a number out of range.
        huggingface_hub.errors.StrictDataclassFieldValidationError: for a field of another type.

    Example:

    ```python
    >>> from modeling_ascent_vit import AscentViTConfig, AscentViTForImageClassification
    >>> config = AscentViTConfig(global_concepts=["striped", "spotted"], spatial_concepts=["beak", "wing", "tail"])
    >>> config.num_spatial_concepts, config.spatial_concept2id["wing"]
    (3, 1)
    >>> model = AscentViTForImageClassification(config)
    ```"""

    model_type = "ascent_vit"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="vit")
    }
    base_model_fsdp_plan: ClassVar[dict[Any, str]] = {}
    # Keeps `EvalPrediction.predictions` to the logits, as metric functions written for other classifiers expect.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "hidden_states",
        "attentions",
        "patch_grid",
        "class_loss",
        "alignment_loss",
        "presence_loss",
        "entropy_loss",
        "global_concept_attention",
        "spatial_concept_attention",
        "unsupervised_concept_attention",
        "concept_contributions",
        "global_concept_attention_heads",
        "spatial_concept_attention_heads",
        "unsupervised_concept_attention_heads",
        "fusion_locations",
        "fusion_weights",
    ]

    if TYPE_CHECKING:
        # What `__post_init__` makes of them.
        backbone_config: Any
        global_concepts: Any
        spatial_concepts: Any
        num_labels: int  # type: ignore[assignment]
    else:
        backbone_config: dict | PreTrainedConfig | None = None
        global_concepts: list[str] | None = None
        spatial_concepts: list[str] | None = None
    num_unsupervised_concepts: int = 0
    psi: float | int = 1.0
    fusion_heads: int = 8
    fusion_points: int = 4
    fusion_levels: int = 3
    fusion_hidden_size: int | None = None
    shifted_fusion: bool = False
    concept_attention_heads: int = 2
    token_dropout: float | int = 0.0
    correction_rate: float | int = 0.0
    concept_loss_weight: float | int = 1.0
    entropy_loss_weight: float | int = 0.5
    label_smoothing: float | int = 0.0
    class_weights: list[float | int] | None = None
    alignment_loss: Literal["mse", "kl"] = "mse"
    global_token: Literal["cls", "cls_mean", "pool"] = "cls"
    none_concept: bool = False
    concept_parts: dict[str, list[str]] | None = None
    concept_edits: list[dict[str, Any]] | None = None
    pyramid_norm: Literal["batch", "group"] = "batch"
    pyramid_stem: Literal["conv", "patch"] = "conv"
    pyramid_channels: list[int] | tuple[int, ...] = (64, 128, 256, 256)
    initializer_range: float | int = 0.02

    def __post_init__(self, **kwargs):
        if not type(self).__module__.startswith("transformers_modules"):
            # Of the installed package, the pipeline is registered, and no code of a folder needs to be trusted.
            kwargs.pop("custom_pipelines", None)
        num_global = kwargs.pop("num_global_concepts", None)
        num_spatial = kwargs.pop("num_spatial_concepts", None)
        if isinstance(self.backbone_config, dict) and "model_type" not in self.backbone_config:
            raise ValueError(
                'backbone_config has no "model_type": add it, for example {"model_type": "vit", "hidden_size": 192, ...}.'
            )
        if isinstance(self.backbone_config, dict):
            model_type = self.backbone_config["model_type"]
            if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
                raise ValueError(
                    f"backbone_config has the model_type {model_type!r}, which transformers does not know: name a "
                    "vision transformer's, for example vit, deit, dinov2 or siglip_vision_model."
                )
            self.backbone_config = backbone_facts(model_type).defaults | self.backbone_config
        self._check_labels(kwargs.get("num_labels", 2))
        if not isinstance(self.backbone_config, PreTrainedConfig):
            spec = self.sub_configs_defaults["backbone_config"]
            self.backbone_config, kwargs = spec.create_subconfig("backbone_config", self.backbone_config, **kwargs)
        describe = self.backbone_facts.describe
        if describe is not None and not hasattr(self.backbone_config, "hidden_size"):
            describe(self.backbone_config)
        sizes = (self.global_concepts, self.spatial_concepts, num_global, num_spatial)
        if all(size is None for size in sizes) and self.num_unsupervised_concepts == 0:
            num_global, num_spatial = CUB_GLOBAL_CONCEPTS, CUB_SPATIAL_CONCEPTS
        self.global_concepts = self._resolve_concepts("global", self.global_concepts, num_global)
        self.spatial_concepts = self._resolve_concepts("spatial", self.spatial_concepts, num_spatial)
        self.pyramid_channels = list(self.pyramid_channels)
        super().__post_init__(**kwargs)
        if self.label2id is None:
            self.label2id = {name: i for i, name in self.id2label.items()}
        self.validate_all()

    def validate_all(self):
        """Runs every check below; the strict dataclass would run them too, but wrap their `ValueError`."""
        self.validate_backbone()
        self.validate_fusion()
        self.validate_losses()
        self.validate_concepts()
        read_edits(self)

    def _check_labels(self, num_labels: Any):
        """Before the base class makes names of the number, which may be long."""
        if not _is_count(num_labels) or num_labels < 1:
            raise ValueError(f"num_labels must be a number of classes, from 1 to {LARGEST_COUNT}; got {num_labels!r}.")
        try:
            indices = [int(index) for index in (self.id2label or {})]
            fits = self.id2label is None or (isinstance(self.id2label, dict) and 1 <= len(indices) <= LARGEST_COUNT)
        except (TypeError, ValueError, OverflowError):
            fits = False
        if not fits:
            raise ValueError(f"id2label must be a dict of the classes' names by index; got {self.id2label!r}.")

    @staticmethod
    def _resolve_concepts(stream: str, names: list[str] | None, number: int | None) -> list[str]:
        if number is not None and not _is_count(number):
            raise ValueError(
                f"num_{stream}_concepts must be a number of concepts, at most {LARGEST_COUNT} and 0 or more; "
                f"got {number!r}."
            )
        if names is None:
            return [f"{stream.upper()}_CONCEPT_{i}" for i in range(number or 0)]
        if number is not None and number != len(names):
            raise ValueError(
                f"num_{stream}_concepts={number}, but {stream}_concepts names {len(names)}: give one of the two."
            )
        return list(names)

    @property
    def num_global_concepts(self) -> int:
        """Number G of global concepts. Setting another number gives generic names."""
        return len(self.global_concepts)

    @num_global_concepts.setter
    def num_global_concepts(self, number: int):
        if number != self.num_global_concepts:
            self.global_concepts = self._resolve_concepts("global", None, number)

    @property
    def num_spatial_concepts(self) -> int:
        """Number S of spatial concepts. Setting another number gives generic names."""
        return len(self.spatial_concepts)

    @num_spatial_concepts.setter
    def num_spatial_concepts(self, number: int):
        if number != self.num_spatial_concepts:
            self.spatial_concepts = self._resolve_concepts("spatial", None, number)

    @property
    def id2global_concept(self) -> dict[int, str]:
        return dict(enumerate(self.global_concepts))

    @property
    def global_concept2id(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.global_concepts)}

    @property
    def id2spatial_concept(self) -> dict[int, str]:
        return dict(enumerate(self.spatial_concepts))

    @property
    def spatial_concept2id(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.spatial_concepts)}

    @property
    def concepts(self) -> list[str]:
        """Names of all concepts in the order of the contributions' columns: global, spatial, unsupervised."""
        unsupervised = [f"UNSUPERVISED_CONCEPT_{i}" for i in range(self.num_unsupervised_concepts)]
        return self.global_concepts + self.spatial_concepts + unsupervised

    @property
    def part_shares(self) -> list[list[float]]:
        """Share that each part of `concept_parts` has in each spatial concept, S rows that sum to 1."""
        parts = [set(names) for names in (self.concept_parts or {}).values()]
        parts += [{name} for name in self.spatial_concepts if not any(name in part for part in parts)]
        counts = {name: sum(name in part for part in parts) for name in self.spatial_concepts}
        return [[(name in part) / counts[name] for part in parts] for name in self.spatial_concepts]

    @property
    def backbone_facts(self) -> BackboneFacts:
        """What holds for every backbone of this kind."""
        return backbone_facts(self.backbone_config.model_type)

    @property
    def hidden_size(self) -> int:
        """Hidden size D of the backbone; of its last stage, if it is hierarchical."""
        return self.backbone_facts.hidden_size(self.backbone_config)

    @property
    def fusion_width(self) -> int:
        """Width of the pyramid's levels: `fusion_hidden_size`, or the backbone's hidden size."""
        return self.hidden_size if self.fusion_hidden_size is None else self.fusion_hidden_size

    @property
    def num_channels(self) -> int:
        """Channels C of the images."""
        return getattr(self.backbone_config, "num_channels", 3)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels that the backbone was built for."""
        return pair(self.backbone_config.image_size)

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch in pixels; of a cell of the last stage, if the backbone is hierarchical."""
        total_stride = self.backbone_facts.total_stride
        return pair(self.backbone_config.patch_size) if total_stride is None else total_stride(self.backbone_config)

    @property
    def is_hierarchical(self) -> bool:
        """Whether the backbone merges patches from stage to stage. It then takes whole cells of the last stage alone."""
        return self.backbone_facts.total_stride is not None

    @property
    def has_fixed_size(self) -> bool:
        """Whether the backbone takes images of no other size than its own."""
        model_args = getattr(self.backbone_config, "model_args", None) or {}
        return self.backbone_facts.has_fixed_size and not model_args.get("dynamic_img_size")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, without `concept_edits` where there are none: most models have never heard of them."""
        fields = super().to_dict()
        if not self.concept_edits:
            fields.pop("concept_edits", None)
        return fields

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):  # type: ignore[override]
        """
        Saves the configuration as every configuration is, with the code that it needs. `auto_map` names every Auto
        class, where transformers by itself would name the saved one alone, and other repositories' code is not named.
        `custom_pipelines` names the pipeline in the code.
        """
        if self._auto_class is not None:
            own = {name: place for name, place in (getattr(self, "auto_map", None) or {}).items() if "--" not in place}
            self.auto_map = AUTO_MAP | own
            self.custom_pipelines = copy.deepcopy(CUSTOM_PIPELINES)
        if os.path.isdir(self.backbone_config.name_or_path):
            # A folder of this machine tells others nothing.
            self.backbone_config.name_or_path = ""
        super().save_pretrained(save_directory, **kwargs)
        vars(self).pop("custom_pipelines", None)

    def validate_backbone(self):
        """The backbone gives one token per patch, and its size is divided by the heads."""
        backbone_type, facts = self.backbone_config.model_type, self.backbone_facts
        if facts.unsuitable:
            raise ValueError(
                f"{backbone_type} cannot be the backbone: {facts.unsuitable}. Use another vision transformer."
            )
        needed = ("image_size",) if self.is_hierarchical else ("hidden_size", "image_size", "patch_size")
        missing = [name for name in needed if getattr(self.backbone_config, name, None) is None]
        if missing:
            raise ValueError(
                f"{backbone_type} cannot be the backbone: its configuration has no {' and no '.join(missing)}. "
                "Use a vision transformer with one token per patch, for example vit, deit, dinov2 or siglip_vision_model."
            )
        for name in needed:
            if name != "hidden_size":
                _check_sides(name, getattr(self.backbone_config, name))
        if self.hidden_size < 1 or self.num_channels < 1:
            raise ValueError(
                f"backbone_config must have a hidden size and a number of channels of 1 or more; got {self.hidden_size} "
                f"and {self.num_channels}."
            )
        (height, width), patch = self.image_size, self.patch_size
        if height < patch[0] or width < patch[1]:
            raise ValueError(
                f"{backbone_type} needs an image_size of at least one patch, {patch[0]}x{patch[1]} pixels; got "
                f"{height}x{width}."
            )
        if facts.is_square and height != width:
            raise ValueError(
                f"{backbone_type} takes a square image_size; got {height}x{width}. Give one number, and pass images of "
                "another shape to the model, with interpolate_pos_encoding=True if it asks for it."
            )
        if self.is_hierarchical and (height % patch[0] or width % patch[1]):
            raise ValueError(
                f"{backbone_type} needs an image_size of whole cells of its last stage, {patch[0]}x{patch[1]} pixels; "
                f"got {height}x{width}."
            )
        if facts.check is not None:
            facts.check(self.backbone_config)
        if self.concept_attention_heads < 1 or self.hidden_size % self.concept_attention_heads:
            raise ValueError(
                f"concept_attention_heads={self.concept_attention_heads} must divide the backbone's hidden size "
                f"{self.hidden_size}."
            )

    def validate_fusion(self):
        """The pyramid has the levels that the fusion asks for."""
        if not 0 <= self.fusion_levels <= len(PYRAMID_STRIDES):
            raise ValueError(f"fusion_levels must be from 0 to {len(PYRAMID_STRIDES)}; got {self.fusion_levels}.")
        if self.fusion_levels and not 1 <= self.fusion_points <= LARGEST_FUSION_POINTS:
            raise ValueError(
                f"fusion_points must be at most {LARGEST_FUSION_POINTS} and 1 or more; got {self.fusion_points}."
            )
        if self.fusion_hidden_size is not None and not 1 <= self.fusion_hidden_size <= LARGEST_CHANNELS:
            raise ValueError(
                f"fusion_hidden_size must be at most {LARGEST_CHANNELS} and 1 or more; got {self.fusion_hidden_size}."
            )
        if self.fusion_levels and (self.fusion_heads < 1 or self.fusion_width % self.fusion_heads):
            whose = "the backbone's hidden size" if self.fusion_hidden_size is None else "fusion_hidden_size"
            raise ValueError(f"fusion_heads={self.fusion_heads} must divide {whose} {self.fusion_width}.")
        if not abs(self.psi) <= LARGEST_NUMBER:
            raise ValueError(f"psi must be a finite number of at most {LARGEST_NUMBER:g}; got {self.psi}.")
        channels = self.pyramid_channels
        if len(channels) != 1 + len(PYRAMID_STRIDES) or not all(
            1 <= number <= LARGEST_CHANNELS for number in channels
        ):
            raise ValueError(
                f"pyramid_channels must be {1 + len(PYRAMID_STRIDES)} numbers from 1 to {LARGEST_CHANNELS}, of the stem and "
                f"of each level; got {channels}."
            )

    def validate_losses(self):
        """Weights of the loss and of initialisation are in range, and the kind of class loss is known."""
        for name in ("concept_loss_weight", "entropy_loss_weight"):
            if not 0 <= getattr(self, name) <= LARGEST_NUMBER:
                raise ValueError(
                    f"{name} must be at most {LARGEST_NUMBER:g} and 0 or more; got {getattr(self, name)}."
                )
        for name in ("label_smoothing", "token_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be from 0 to below 1; got {getattr(self, name)}.")
        if not 0 <= self.correction_rate <= 1:
            raise ValueError(f"correction_rate must be from 0 to 1; got {self.correction_rate}.")
        weights = self.class_weights
        if weights is not None and (
            len(weights) != self.num_labels or not all(0 <= weight <= LARGEST_NUMBER for weight in weights)
        ):
            raise ValueError(
                f"class_weights must be a number of at most {LARGEST_NUMBER:g} and 0 or more for each of {self.num_labels} "
                f"classes; got {weights}."
            )
        if not 0 < self.initializer_range <= LARGEST_NUMBER:
            raise ValueError(
                f"initializer_range must be above 0 and at most {LARGEST_NUMBER:g}; got {self.initializer_range}."
            )
        if self.problem_type is not None and self.problem_type not in PROBLEM_TYPES:
            raise ValueError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}; got {self.problem_type!r}.")

    def validate_concepts(self):
        """At least one stream, each able to learn, with names that tell its concepts apart."""
        if not _is_count(self.num_unsupervised_concepts):
            raise ValueError(
                f"num_unsupervised_concepts must be at most {LARGEST_COUNT} and 0 or more; "
                f"got {self.num_unsupervised_concepts}."
            )
        sizes = {
            "global": self.num_global_concepts,
            "spatial": self.num_spatial_concepts,
            "unsupervised": self.num_unsupervised_concepts,
        }
        if not any(sizes.values()):
            raise ValueError("The model has no concepts: name at least two in global_concepts or spatial_concepts.")
        for stream, size in sizes.items():
            has_none = self.none_concept and stream != "unsupervised"
            if size == 1 and not has_none:
                raise ValueError(
                    f"The {stream} stream has one concept, whose attention would always be 1: "
                    "add a concept" + ("." if stream == "unsupervised" else ", or set none_concept=True.")
                )
        for part, names in (self.concept_parts or {}).items():
            unknown = [name for name in names if name not in self.spatial_concepts]
            if unknown or not names:
                raise ValueError(
                    f"concept_parts must name spatial concepts; {part!r} has "
                    + (f"{unknown[0]!r}, which is none of them." if unknown else "no concept.")
                )
        for stream in ("global", "spatial"):
            names = getattr(self, f"{stream}_concepts")
            repeated = sorted(name for name, times in Counter(names).items() if times > 1)
            if repeated:
                raise ValueError(f"{stream}_concepts must differ from each other; repeated: {', '.join(repeated)}.")


__all__ = ["AscentViTConfig"]
