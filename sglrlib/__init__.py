"""Training, attacks, evaluation and diagnostics behind the notebooks of the SGLR companion (CVPR 2024)."""
