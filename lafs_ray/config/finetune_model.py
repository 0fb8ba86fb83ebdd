"""Settings of the network in supervised training: what is read of it, and which of its parts are trained."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from lafs_ray.config.loader import Duration, DurationField, Real, Section
from lafs_ray.config.train import Model, Positive, Readout


class FinetuneModel(Model):
    """The transformer, the landmark CNN and what is read of them."""

    readout: Readout = "class"
    """Outputs of the transformer that make the embedding: the class token, the mean of the other tokens, or all of them
    side by side."""
    whitened_dim: Annotated[int, Field(ge=1, le=1 << 16)] | None = None
    """Numbers of a whitened embedding: the whitening of start.transformer, a file of jobs/whiten.py, comes along, and a
    linear map of its components is trained. null: none, the embedding is what is read."""


class Freeze(Section):
    """Parts that are frozen at first (`1 run`: always). A frozen part is in eval mode."""

    landmarks: DurationField = Duration(amount=0.0, unit="epochs")
    """How long the landmark CNN is frozen."""
    transformer: DurationField = Duration(amount=0.0, unit="epochs")
    """How long the transformer is frozen; with both, only the class centers are trained, and the map of a whitening
    where there is one."""
    blocks: Positive | None = None
    """Number of first blocks that are frozen for good, with patch embedding, class token and positions; null: none."""


class Lora(Section):
    """LoRA: the transformer is frozen, and low-rank changes of the linear layers of its blocks are trained."""

    rank: Positive | None = None
    """Rank of the changes, in all blocks that freeze.blocks leaves; null: no LoRA. The landmark CNN and the class
    centers are trained as without; checkpoints that are loaded have the changes in their weights."""
    alpha: Annotated[Real, Field(gt=0.0)] | None = None
    """Scale of the changes is alpha / rank; null: 1."""

    @property
    def scale(self) -> float:
        """The factor on the changes."""
        assert self.rank is not None
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @model_validator(mode="after")
    def _alpha_has_a_rank(self) -> Lora:
        if self.alpha is not None and self.rank is None:
            raise ValueError(f"alpha: {self.alpha:g}, but rank is not set; set lora.rank, or leave alpha out")
        return self
