"""What every backbone that writes text shares: the next token, and tokens to text as they come."""

from backbones.text.eval_mode import evaluating
from backbones.text.streamed_text import StreamedText
from backbones.text.token_choice import TokenChoice, checked_token_ids, padding_token_id, random_source

__all__ = [
    "StreamedText",
    "TokenChoice",
    "checked_token_ids",
    "evaluating",
    "padding_token_id",
    "random_source",
]
