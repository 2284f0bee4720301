"""The rules of `wharf validate`, one module a family. Each returns lines `path: what is wrong (next step)`."""
