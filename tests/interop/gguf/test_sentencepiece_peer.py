"""llama.cpp reads SentencePiece's tokenizers from our files as we do, and talks as we do."""
