"""A checkpoint folder: what it is made from, how it is written, what it says of itself, whether it is whole."""
