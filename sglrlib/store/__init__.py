"""What is kept on disk: checkpoints, logs, results, and leases on them. Imports config."""
