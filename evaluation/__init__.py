"""Turns layer sets into answers: questions from lm-eval, the engine that walks models, the journal."""
