"""The provider `node`: one real Kubernetes node on a Debian-like machine, without Docker."""
