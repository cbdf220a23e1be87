"""The package of the book "Transformers, Matrix by Matrix".

Each module is one chapter's code. The names below are what most users want; the parts
(attention, norms, positions, blocks) are importable from their modules.

Made by tools/export.py.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformer.bert import BERT, BERTConfig
    from transformer.encoder_decoder import Transformer, TransformerConfig
    from transformer.generation import generate
    from transformer.gpt import GPT, GPTConfig
    from transformer.pretrained import from_pretrained, save_pretrained
    from transformer.tokens import Tokenizer
    from transformer.vision import ViT, ViTConfig

__version__ = "0.1.0"

__all__ = [
    "BERT",
    "GPT",
    "BERTConfig",
    "GPTConfig",
    "Tokenizer",
    "Transformer",
    "TransformerConfig",
    "ViT",
    "ViTConfig",
    "from_pretrained",
    "generate",
    "save_pretrained",
]

_HOME = {
    "BERT": "bert",
    "BERTConfig": "bert",
    "GPT": "gpt",
    "GPTConfig": "gpt",
    "Tokenizer": "tokens",
    "Transformer": "encoder_decoder",
    "TransformerConfig": "encoder_decoder",
    "ViT": "vision",
    "ViTConfig": "vision",
    "from_pretrained": "pretrained",
    "generate": "generation",
    "save_pretrained": "pretrained",
}


def __getattr__(name: str) -> Any:
    # A name's module loads when first asked for: small parts stay cheap.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"transformer.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
