"""A small transformer that says what is at places that an encoder did not see, from what it made of the others: MAE's
decoder (He et al. 2021, arXiv 2111.06377, section 3) and the predictors of I-JEPA (2301.08243, section 3) and V-JEPA
(2404.08471, section 3)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from heliostat_algorithms.backbones.transformer import Block, Initialization, initialize


class Predictor(nn.Module):
    """Tokens of the context and mask tokens, each at its place, go through the blocks; mask tokens come out as
    predictions.

    Args:
        in_dim: width of the encoder's tokens.
        out_dim: width of a prediction.
        positions: (P, width), fixed: what is added to a token at each place. The width of the blocks is theirs.
        depth, heads, mlp_ratio: of the blocks.
        initialization: of the linear layers.
        mask_tokens: how many learned mask tokens there are; V-JEPA has one for each kind of mask.
        mask_token_std: standard deviation with which they begin; 0 for zeros.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        positions: Tensor,
        *,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        initialization: Initialization = "trunc-normal",
        mask_tokens: int = 1,
        mask_token_std: float = 0.02,
    ) -> None:
        super().__init__()
        width = positions.shape[1]
        self.embed = nn.Linear(in_dim, width)
        self.register_buffer("positions", positions, persistent=False)
        self.mask_tokens = nn.Parameter(torch.zeros(mask_tokens, width))
        self.blocks = nn.ModuleList(Block(width, heads, int(width * mlp_ratio)) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, out_dim)
        initialize(self, initialization)
        if mask_token_std:
            nn.init.trunc_normal_(self.mask_tokens, std=mask_token_std)

    def forward(self, context: Tensor, places: Tensor, targets: Tensor, mask_token: int = 0) -> Tensor:
        """What is at the targets.

        Args:
            context: (M, K, in_dim), the encoder's tokens.
            places: (M, K) int64, where in ``positions`` each of them is.
            targets: (M, T) int64, the places to be predicted.
            mask_token: which mask token stands there.

        Returns:
            (M, T, out_dim). Tokens attend to one another whatever their order, and only what is asked for is computed
            to the end.
        """
        positions = cast("Tensor", self.positions)
        seen = self.embed(context) + positions[places]
        asked = self.mask_tokens[mask_token] + positions[targets]
        x = torch.cat([asked, seen.to(asked.dtype)], dim=1)
        count = targets.shape[1]
        for number, block in enumerate(self.blocks):
            x = block(x, outputs=count if number == len(self.blocks) - 1 else None)
        predictions: Tensor = self.head(self.norm(x[:, :count]))
        return predictions
