"""What `wharf batch` is made of: the artifact, the input, its encoding, the parts that are done, and the output."""
