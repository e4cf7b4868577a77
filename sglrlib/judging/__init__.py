"""What a network is worth, ours or any other: evaluation, sanity checks, diagnostics. Imports method."""
