"""Loss on texts, and tasks of lm-evaluation-harness."""
