"""Which algorithms there are, and how a union of their configs is told apart."""

from __future__ import annotations

import dataclasses
import types
from typing import Annotated, Any, TypeAlias, Union, get_args, get_origin

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from heliostat_algorithms.algorithm import Algorithm, OneOf
from heliostat_algorithms.generative.cvae import CVAE
from heliostat_algorithms.generative.gan import GAN
from heliostat_algorithms.generative.vae import VAE
from heliostat_algorithms.generative.video_diffusion import VideoDiffusion
from heliostat_algorithms.reinforcement.dqn import DQN
from heliostat_algorithms.representation.dino import DINO
from heliostat_algorithms.representation.dinov2 import DINOv2
from heliostat_algorithms.representation.ijepa import IJEPA
from heliostat_algorithms.representation.mae import MAE
from heliostat_algorithms.representation.moco import MoCo
from heliostat_algorithms.representation.moco_v3 import MoCoV3
from heliostat_algorithms.representation.simclr import SimCLR
from heliostat_algorithms.representation.simclr_v2 import SimCLRv2
from heliostat_algorithms.representation.simclr_v2_transfer import SimCLRv2Distill, SimCLRv2FineTune
from heliostat_algorithms.representation.vjepa import VJEPA
from heliostat_algorithms.sequence.classifier import SequenceClassifier
from heliostat_algorithms.sequence.language_model import LanguageModel
from heliostat_algorithms.sequence.transformer import Transformer
from heliostat_algorithms.supervised.vit import ViTClassifier

ALGORITHMS: dict[str, type[Algorithm]] = {
    "simclr": SimCLR,
    "simclr-v2": SimCLRv2,
    "simclr-v2-fine-tune": SimCLRv2FineTune,
    "simclr-v2-distill": SimCLRv2Distill,
    "moco": MoCo,
    "moco-v3": MoCoV3,
    "dino": DINO,
    "dinov2": DINOv2,
    "mae": MAE,
    "ijepa": IJEPA,
    "vjepa": VJEPA,
    "vit": ViTClassifier,
    "vae": VAE,
    "cvae": CVAE,
    "gan": GAN,
    "video-diffusion": VideoDiffusion,
    "transformer": Transformer,
    "language-model": LanguageModel,
    "sequence-classifier": SequenceClassifier,
}
"""The name in a job file (``algorithm: {type: ...}``) and the class that it builds."""

AGENTS: dict[str, type[DQN]] = {"dqn": DQN}
"""The same for reinforcement learning: what a job with ``environment:`` names."""


def type_name(config: type[Any]) -> str:
    """The value of ``type`` by which a job file names this config class."""
    return str(next(field.default for field in dataclasses.fields(config) if field.name == "type"))


def members(union: Any) -> dict[str, type[Any]]:
    """Name -> config class, for a union of configs (or for a single one)."""
    if get_origin(union) is Annotated:
        union = get_args(union)[0]
    variants = get_args(union) if get_origin(union) in (Union, types.UnionType) else (union,)
    return {type_name(variant): variant for variant in variants}


def _tagged_union(self: OneOf, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
    """Pydantic's own ``Discriminator`` wants two members at least; a family of algorithms may begin with one."""
    choices = {name: handler.generate_schema(config) for name, config in members(source).items()}
    return core_schema.tagged_union_schema(choices, discriminator="type")


# The marker lives in algorithms/, which knows no pydantic; its meaning for validation is given to it here.
OneOf.__get_pydantic_core_schema__ = _tagged_union  # type: ignore[attr-defined]

AlgorithmConfig: TypeAlias = Annotated[
    SimCLR.Config
    | SimCLRv2.Config
    | SimCLRv2FineTune.Config
    | SimCLRv2Distill.Config
    | MoCo.Config
    | MoCoV3.Config
    | DINO.Config
    | DINOv2.Config
    | MAE.Config
    | IJEPA.Config
    | VJEPA.Config
    | ViTClassifier.Config
    | VAE.Config
    | CVAE.Config
    | GAN.Config
    | VideoDiffusion.Config
    | Transformer.Config
    | LanguageModel.Config
    | SequenceClassifier.Config,
    OneOf(),
]
"""Any algorithm's config, told apart by ``type``."""

AgentConfig: TypeAlias = Annotated[DQN.Config, OneOf()]
"""Any agent's config, told apart by ``type``."""
