"""Releases and settings as Kubernetes and Argo CD objects, and as plain YAML."""
