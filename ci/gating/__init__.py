"""What `wharf gate` is made of: scores, checks, uncertainty, evidence."""
