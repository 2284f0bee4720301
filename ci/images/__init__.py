"""OCI images: of bentos, and of the platform's own programs where no registry can be reached."""
