"""Both models' layers over texts packed end to end: layout, kernels and their plain twins, matrices, donor layers."""
