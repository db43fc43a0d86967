"""The markers of the tokenizers that are made here, and the least vocabulary: they and every byte."""

PAD, BEGIN, END, SYSTEM, USER, ASSISTANT = SPECIAL_TOKENS = (
    "<|pad|>",
    "<|begin|>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
)
MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
