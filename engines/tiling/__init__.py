"""Images of any size in bounded memory, with the answer of the whole image."""
