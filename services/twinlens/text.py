"""One text on its way through the paths, with the raw path's tokens. Independent of Kafka: an `Item` holds one."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Text:
    """A text, and its tokens after the raw path's tokenizer has run."""

    content: str = field(default="", repr=False)
    inputs: dict[str, list[int]] = field(
        default_factory=dict, repr=False
    )  #: the tokenizer's output by its names, without the mask
    cut_tokens: int = 0  #: tokens beyond the raw path's max_length, which truncation cut off
    token_error: Exception | None = None  #: what the tokenizer raised

    @property
    def token_count(self) -> int:
        """Number of tokens that the raw path's model gets, with special tokens."""
        return len(self.inputs.get("input_ids", ()))

    @property
    def truncated(self) -> bool:
        """Whether the raw path sees only a part of the text."""
        return self.cut_tokens > 0
