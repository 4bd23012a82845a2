"""How long prompts may be for the model that reads them. Without tensors: a process without models can ask."""

from tokenizers import Tokenizer


class PromptTokens:
    """Finds prompts that a model would read the beginning of only. Safe to share among threads, and to pickle.

    limit: tokens, which are words and parts of words, that the model reads of a prompt.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        """`max_length`: tokens that the model takes, those for a text's beginning and end among them."""
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())  # of its own: the other one is told to cut and to pad
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.limit = max_length - tokenizer.num_special_tokens_to_add(is_pair=False)

    def count(self, prompt: str) -> int:
        """Tokens of a prompt."""
        return len(self._tokenizer.encode(prompt.lower(), add_special_tokens=False).ids)
