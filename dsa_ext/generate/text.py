"""Text to tokens and back: by the checkpoint's tokenizer, or as numbers where there is none."""

from collections.abc import Sequence
from pathlib import Path


class Numbers:
    """No tokenizer: a text is its token numbers."""

    chats = False

    def encode(self, text: str) -> list[int]:
        """Numbers between spaces or commas."""
        try:
            return [int(number) for number in text.replace(",", " ").split()]
        except ValueError:
            raise ValueError(
                f"prompt {text!r}: without a tokenizer, expected token numbers between spaces, as in '0 4212 17'"
            ) from None

    def decode(self, tokens: Sequence[int]) -> str:
        return " ".join(map(str, tokens))


class Tokenizer:
    """transformers' tokenizer, with its chat template if it has one."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.chats = bool(getattr(tokenizer, "chat_template", None))

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """{"role": "user" or "assistant", "content": text} each, to where the assistant's next answer begins."""
        text = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return self._tokenizer.encode(text, add_special_tokens=False)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)


def open_text(folder: Path) -> tuple[Tokenizer | Numbers, str]:
    """The tokenizer whose files lie beside the weights, and what a user has to know about it. Nothing is downloaded.

    Raises:
        ValueError: its files cannot be read.
    """
    if not any(folder.glob("tokenizer*")):
        return Numbers(), f"{folder} has no tokenizer: prompts are token numbers between spaces"
    try:
        from transformers import AutoTokenizer
    except ImportError:
        return Numbers(), "transformers is not installed: prompts are token numbers between spaces"
    try:
        text = Tokenizer(AutoTokenizer.from_pretrained(folder, local_files_only=True))
    except Exception as error:  # of many kinds, by the file that is wrong
        raise ValueError(f"the tokenizer in {folder} cannot be read: {error}") from error
    return text, f"prompts are {'messages of a chat' if text.chats else 'texts to go on with'}"
