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
"""Image processor of ASCENT-ViT on torchvision."""

from transformers.image_processing_backends import TorchvisionBackend

from .image_processing_pil_ascent_vit import AscentViTImageProcessorBase, AscentViTImageProcessorKwargs


class AscentViTImageProcessor(AscentViTImageProcessorBase, TorchvisionBackend):
    __doc__ = f"""ASCENT-ViT image processor on torchvision.
    {AscentViTImageProcessorBase.__doc__}"""


__all__ = ["AscentViTImageProcessor", "AscentViTImageProcessorKwargs"]
