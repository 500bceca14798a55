"""The bundled pair: a trained 12-layer Llama donor, the Llamba base distilled from it, and their questions.

`python -m models.tiny_pair --help` tells how every file of this folder is made again.
"""
