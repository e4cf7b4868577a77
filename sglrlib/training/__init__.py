"""Runs: the step, the loop, what is measured meanwhile, and what is kept of it. Imports all of the above."""
