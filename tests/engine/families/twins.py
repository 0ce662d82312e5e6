"""What stands for a model that transformers has not: a tower in plain torch before a language model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


class TwinConfig(PreTrainedConfig):
    """Configuration of a twin: that of its language model is a class of transformers, the rest is as it comes."""

    def __init__(self, text_config: Any = None, **more: Any) -> None:
        made = type(self).sub_configs["text_config"]
        self.text_config = text_config if isinstance(text_config, PreTrainedConfig) else made(**(text_config or {}))
        super().__init__(**more)


class Twin(PreTrainedModel):
    """A model whose parts have the names that they have on the hub."""

    config_class = TwinConfig
    language: str
    _supports_sdpa = True

    @property
    def causal(self) -> Any:
        """The language model with its head."""
        parts = getattr(self, self.language)
        return SimpleNamespace(**dict(parts.items())) if isinstance(parts, nn.ModuleDict) else parts

    def get_decoder(self) -> Any:
        """The language model without its head."""
        return self.causal.model

    def get_input_embeddings(self) -> nn.Module:
        """Embeddings of the vocabulary."""
        return self.causal.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.causal.lm_head

    def _init_weights(self, module: nn.Module) -> None:
        """Recipes draw the weights."""


def register(config: type[TwinConfig], model: type[Twin]) -> None:
    """Let transformers and vLLM find a twin by the name of its configuration."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModelForImageTextToText.register(config, model, exist_ok=True)
