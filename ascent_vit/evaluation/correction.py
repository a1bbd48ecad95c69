# SPDX-License-Identifier: Apache-2.0
"""What class scores would be had one concept been seen otherwise, by the exact sum: no model runs again."""

import torch
from torch import Tensor

from modeling_ascent_vit.modeling_ascent_vit import attention_share


def correct_each(attention: Tensor, truth: Tensor, table: Tensor, gated: bool) -> Tensor:
    """
    Corrects each concept of a stream by itself, at all tokens with a value, as the model's overrides would do it: its
    attention is that value there, and the others share what is left of 1 as they did before.

    The tokens and the table do not depend on the attention, so the change of the class scores is known without them.

    Args:
        attention (`torch.Tensor` of shape `(B, A, T, S)`): Attention of the heads to the concepts, the model's own.
        truth (`torch.Tensor` of shape `(B, T, S)`): Attention to set, 0 to 1; NaN in rows that stay as they are.
        table (`torch.Tensor` of shape `(A, S, K)`): The stream's contribution table.
        gated (`bool`): Whether attention of a token may lack something of 1, which is shared like a concept's.

    Returns:
        `torch.Tensor` of shape `(B, S, K)`: change of each logit by the correction of each concept.
    """
    # In float64, which MPS does not have, as what is left to the other concepts may be tiny.
    precision = torch.float32 if attention.device.type == "mps" else torch.float64
    attention, table = attention.to(precision), table.to(precision)
    number = attention.shape[-1]
    known = ~truth.isnan().any(-1, keepdim=True).unsqueeze(1)
    value = torch.where(known, truth.unsqueeze(1).to(precision), attention)
    others = attention @ (1 - torch.eye(number, dtype=attention.dtype, device=attention.device))
    left = others
    if gated:
        left = others + (1 - attention.sum(-1, keepdim=True)).clamp_min(0)
    factor = torch.where(known, (1 - value) / left.clamp_min(torch.finfo(precision).tiny), 1.0)
    # Row s: the attention of an image to all concepts once concept s is corrected.
    pooled = factor.transpose(2, 3) @ attention
    diagonal = torch.eye(number, dtype=torch.bool, device=attention.device)
    pooled = torch.where(diagonal, value.sum(2).unsqueeze(-1), pooled)
    voices = (value + factor * others).mean(1).clamp_max(1.0).sum(1).clamp_min(1.0)
    corrected = torch.einsum("bacs,ask->bck", pooled, table) / voices.unsqueeze(-1)
    before = torch.einsum("bas,ask->bk", attention.sum(2) * attention_share(attention), table)
    return corrected - before.unsqueeze(1)


__all__ = ["correct_each"]
