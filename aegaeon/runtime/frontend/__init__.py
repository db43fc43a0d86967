"""Between requests of text and nodes that take tokens: streams, tokenizers, chat templates, the choice of a node."""
