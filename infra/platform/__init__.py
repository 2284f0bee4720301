"""The platform services as plain Kubernetes objects.

The one source of what `wharf up --target cluster` and the Pulumi program apply.
"""
