"""What `wharf train` is made of: data, export, recording."""
