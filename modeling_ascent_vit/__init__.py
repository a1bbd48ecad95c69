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
"""
The ASCENT-ViT model. Importing it registers configuration, models and image processors with the Auto classes, and the
pipeline task "concept-image-classification".

`AscentViTImageProcessor` is the torchvision backend, or the PIL backend where torchvision is not installed.
"""

from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import is_torchvision_available

from .concept_pipeline_ascent_vit import TASK, ConceptImageClassificationPipeline
from .configuration_ascent_vit import AscentViTConfig
from .image_processing_pil_ascent_vit import AscentViTImageProcessorPil
from .modeling_ascent_vit import AscentViTForImageClassification, AscentViTModel, AscentViTPreTrainedModel


_image_processors: dict[str, Any] = {"pil": AscentViTImageProcessorPil}
if is_torchvision_available():
    from .image_processing_ascent_vit import AscentViTImageProcessor

    _image_processors["torchvision"] = AscentViTImageProcessor
else:
    AscentViTImageProcessor = AscentViTImageProcessorPil  # type: ignore[misc,assignment]

AutoConfig.register("ascent_vit", AscentViTConfig, exist_ok=True)
AutoModel.register(AscentViTConfig, AscentViTModel, exist_ok=True)
AutoModelForImageClassification.register(AscentViTConfig, AscentViTForImageClassification, exist_ok=True)
AutoImageProcessor.register(AscentViTConfig, image_processor_classes=_image_processors, exist_ok=True)

if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(
        TASK, ConceptImageClassificationPipeline, pt_model=AutoModelForImageClassification, type="image"
    )

# Saving, and with it pushing to the Hub, copies the code, so that it works where this package is not installed.
AscentViTConfig.register_for_auto_class("AutoConfig")
AscentViTModel.register_for_auto_class("AutoModel")
AscentViTForImageClassification.register_for_auto_class("AutoModelForImageClassification")
for _image_processor in _image_processors.values():
    _image_processor.register_for_auto_class("AutoImageProcessor")

__all__ = [
    "AscentViTConfig",
    "AscentViTForImageClassification",
    "AscentViTImageProcessor",
    "AscentViTImageProcessorPil",
    "AscentViTModel",
    "AscentViTPreTrainedModel",
    "ConceptImageClassificationPipeline",
]
