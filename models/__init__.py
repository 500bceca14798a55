"""Llamba, Llama and hybrid architectures, and the zoo of pairs.

Import the modules themselves: this file loads nothing.
"""
