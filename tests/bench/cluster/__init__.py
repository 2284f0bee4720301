"""The figures of the cluster target; `__main__` says what is measured and how."""
