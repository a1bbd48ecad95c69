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

from typing import Any

import torch
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import PILImageResampling
from transformers.utils import requires_backends

from .image_processing_pil_ascent_vit import (
    AscentViTImageProcessorBase,
    AscentViTImageProcessorKwargs,
    resized_size,
)


class AscentViTImageProcessor(AscentViTImageProcessorBase, TorchvisionBackend):
    __doc__ = f"""ASCENT-ViT image processor on torchvision.
    {AscentViTImageProcessorBase.__doc__}"""

    def _preprocess(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        requires_backends(self, "torchvision")
        return super()._preprocess(images, *args, **kwargs)

    def resize(self, image: Any, size: Any, resample: Any = None, **kwargs) -> Any:  # type: ignore[override]
        if resample in (PILImageResampling.BOX, PILImageResampling.HAMMING):
            raise ValueError(
                f"torchvision cannot resize with {PILImageResampling(resample).name}: choose another resample, or load the "
                'image processor with backend="pil".'
            )
        if image.dtype == torch.uint8 and resized_size((image.shape[-2], image.shape[-1]), size) == (1, 1):
            # torch fails with an assertion of its own on bytes that become one pixel.
            return super().resize(image.float(), size, resample, **kwargs).round().to(torch.uint8)
        return super().resize(image, size, resample, **kwargs)


__all__ = ["AscentViTImageProcessor", "AscentViTImageProcessorKwargs"]
