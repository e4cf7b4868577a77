"""What one notebook alone needs: its table, its figure, its claims. Imports all of the above."""
