"""What is seen: tables, verdicts, figures, and a notebook's parameters. Imports training and all below it."""
