"""The cluster target: providers of a Kubernetes cluster, and the platform on it."""
